"""evaluate on pairs of texts by the command line: scores give similarity, none give retrieval; beside both baselines."""

import csv
import json
from pathlib import Path

import pytest

from tests import runs
from tests.modality.corpus import english


@pytest.fixture(scope="module")
def run() -> Path:
    root, out = runs.folder("sentences"), runs.folder("sentences-mlm")
    root.mkdir(parents=True)
    (root / "texts.txt").write_text("".join(t.replace("\n", " ") + "\n" for t, _ in english()), "utf-8")
    more = ("--encoder", "bert_tiny", "--size", 32, "--set", "text.vocabulary=600", "--steps", 2, "--batch", 16)
    runs.succeed("pretrain", root / "texts.txt", "--pretext", "mlm", *more, "--out", out)
    return out


def write(file: Path, rows: list[tuple[object, ...]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return file


def test_scored_pairs_give_similarity(run: Path, tmp_path: Path) -> None:
    texts = [t.split("\n")[0] for t, _ in english()[:60]]
    rows = [(t, t if i % 2 else texts[-1 - i], 5.0 if i % 2 else 0.5) for i, t in enumerate(texts)]
    data = write(tmp_path / "sts.csv", [("sentence1", "sentence2", "score"), *rows, ("a", "b", "many")])
    said = runs.succeed("evaluate", run, data)
    found = json.loads((run / "similarity.json").read_text())
    assert {r["features"] for r in found["rows"]} == {"pretrained", "random_init", "raw"}
    assert {(r["metric"], r["n"]) for r in found["rows"]} == {("spearman", 60)}
    assert all(r["low"] <= r["value"] <= r["high"] for r in found["rows"])
    assert found["rows"][0]["value"] > 0.5, "a text is closest to itself"
    assert found["protocol"]["left_out_as_unusable"] == 1
    assert found["protocol"]["left_out"] == [["row 62", "its score 'many' is no number"]]
    assert {d["against"] for d in found["differences"]} == {"random_init", "raw"}
    assert "Spearman's correlation" in said.out


def test_pairs_without_scores_give_retrieval(run: Path, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(t.split("\n")[0] for t, _ in english()))[:50]
    rows = [(f"{t} indeed", t) for t in texts] + [(f"{texts[0]} indeed", texts[1])]
    data = write(tmp_path / "questions.csv", [("question", "answer"), *rows])
    runs.succeed("evaluate", run, f"{data}?source=question&target=answer", "--quiet")
    found = json.loads((run / "retrieval.json").read_text())
    assert {r["metric"] for r in found["rows"]} == {"ndcg@10", "recall@1", "recall@10"}
    assert {r["n"] for r in found["rows"]} == {50}
    raw = {r["metric"]: r["value"] for r in found["rows"] if r["features"] == "raw"}
    assert raw["recall@10"] > 0.8, "TF-IDF finds the same words"
    report = (run / "report.html").read_text("utf-8")
    assert "nDCG@10" in report
    assert "Pretraining" in report.split("</h1>")[0], "the verdict on pairs is a verdict"
    runs.succeed("evaluate", run, runs.folder("sentences") / "texts.txt", "--quiet")
    report = (run / "report.html").read_text("utf-8")
    assert "nDCG@10" in report
    assert "pseudo perplexity" in report


def test_bad_requests(run: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "run"
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, "--steps", 1, "--batch", 16, "--out", pictures)
    data = write(tmp_path / "pairs.csv", [("source", "target"), ("a", "b"), ("c", "d")])
    assert "holds pairs of texts" in runs.one_line(runs.run("evaluate", pictures, data), 2)
    assert "has no column 'x'" in runs.one_line(runs.run("evaluate", run, f"{data}?source=source&target=x"), 2)
    scored = f"{data}?source=source&target=target&score=y"
    assert "has no column 'y'" in runs.one_line(runs.run("evaluate", run, scored), 2)


@pytest.mark.parametrize("words", [("--train", "x"), ("--labels", 10), ("--draws", 3)])
def test_options_that_pairs_have_no_use_for_are_refused(run: Path, tmp_path: Path, words: tuple[str, object]) -> None:
    texts = [t.split("\n")[0] for t, _ in english()[:30]]
    data = write(tmp_path / "sts.csv", [("sentence1", "sentence2", "score"), *((t, t, 1.0) for t in texts)])
    said = runs.one_line(runs.run("evaluate", run, data, *words, "--quiet"), 2)
    assert said == f"{words[0]} is not for pairs of texts, which train nothing; leave it out"
