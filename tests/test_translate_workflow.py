"""Translation by the command line: pretrain on both languages, fine-tune, predict; resumed to the same bits; bad requests."""

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from selftaught.errors import UserError
from tests import runs

NOUNS = {"dog": "Hund", "cat": "Kater", "man": "Mann", "ball": "Ball", "house": "Hof", "tree": "Baum", "car": "Wagen"}
VERBS = {"sees": "sieht", "likes": "mag", "takes": "nimmt", "finds": "findet"}
PAIRS = [
    (f"The {a} {v} the {b} .", f"Der {NOUNS[a]} {VERBS[v]} den {NOUNS[b]} .")
    for a in NOUNS
    for v in VERBS
    for b in NOUNS
]
ENOUGH = ("--epochs", 14, "--lr", 3e-3, "--set", "task.layers=1", "--set", "train.save_every=20")


@pytest.fixture(scope="module")
def data() -> Path:
    """train.en and train.de, aligned; test.csv; mono: the text of both languages, unpaired."""
    root = runs.folder("pairs")
    (root / "mono").mkdir(parents=True)
    train, test = [p for i, p in enumerate(PAIRS) if i % 5], [p for i, p in enumerate(PAIRS) if not i % 5]
    for side, end in enumerate(("en", "de")):
        text = "".join(pair[side] + "\n" for pair in train)
        (root / f"train.{end}").write_text(text, "utf-8")
        (root / "mono" / f"{end}.txt").write_text(text, "utf-8")
    with (root / "test.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("source", "target"), *test])
    return root


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = runs.folder("pairs-mlm")
    more = ("--set", "text.tokenizer=bpe", "--set", "text.vocabulary=400", "--size", 24, "--batch", 32)
    words = ("--pretext", "mlm", "--encoder", "bert_tiny", *more, "--steps", 4, "--out", out)
    runs.succeed("pretrain", f"{data}/mono?split=line", *words)
    return out


def command(run: Path, data: Path, out: Path) -> list[object]:
    pairs = f"{data}/train?source=en&target=de"
    return ["finetune", run, pairs, "--task", "translate", "--test", data / "test.csv", *ENOUGH, "--out", out]


@pytest.fixture(scope="module")
def tuned(run: Path, data: Path) -> Path:
    out = runs.folder("pairs-translate")
    said = runs.succeed(*command(run, data, out))
    assert "over training from scratch" in " ".join(said.out.split())
    return out


def test_figures_stand_beside_training_from_scratch(tuned: Path) -> None:
    found = json.loads((tuned / "finetune.json").read_text())
    assert [(r["features"], r["metric"]) for r in found["rows"]] == [
        (features, metric) for features in ("pretrained", "from_scratch") for metric in ("bleu", "chrf")
    ]
    for row in found["rows"]:
        assert 0 <= row["low"] <= row["value"] <= row["high"] < 100.001
        assert (row["labels_n"], row["n"]) == (156, 40)
    assert {d["metric"] for d in found["differences"]} == {"bleu", "chrf"}
    assert all(d["low"] <= d["value"] <= d["high"] for d in found["differences"])
    protocol = found["protocol"]
    assert (protocol["split"], protocol["tokenizer_gives_back"]) == ("given", 1.0)
    assert "tok:13a" in protocol["bleu"]
    steps = [len((p / "log.jsonl").read_text().splitlines()) for p in (tuned, tuned / "scratch")]
    assert steps[0] == steps[1], "the two budgets differ"
    assert found["rows"][0]["value"] > 30, "a grammar of eleven words is learnt"


def test_predict_writes_translations(tuned: Path, data: Path, tmp_path: Path) -> None:
    runs.succeed("predict", tuned, data / "test.csv", "--out", tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["source"] for r in rows] == [a for i, (a, _) in enumerate(PAIRS) if not i % 5]
    assert set(rows[0]) == {"name", "source", "translation"}
    assert all(r["translation"].startswith("Der ") for r in rows[:5])
    plain = tmp_path / "plain.txt"
    plain.write_text("".join(r["source"] + "\n" for r in rows), "utf-8")
    runs.succeed("predict", tuned, f"{plain}?split=line", "--out", tmp_path / "plain.csv")
    with (tmp_path / "plain.csv").open(newline="", encoding="utf-8") as file:
        assert [r["translation"] for r in csv.DictReader(file)] == [r["translation"] for r in rows]
    assert "exists" in runs.one_line(
        runs.run("predict", tuned, data / "test.csv", "--out", plain.with_suffix(".csv")), 2
    )


def test_a_stopped_run_goes_on_to_the_same_bits(tuned: Path, run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "broken"
    for place in [("checkpoints/", 3), ("scratch/checkpoints", 5), ("translator.safetensors", 1)]:
        assert runs.run(*command(run, data, out), kill=place).code == -signal.SIGKILL, place
    runs.succeed(*command(run, data, out))
    same = ("encoder/*", "scratch/encoder/*", "log.jsonl", "scratch/log.jsonl", "finetune.json")
    assert "scratch/encoder/translator.safetensors" in runs.files(tuned, *same)
    assert runs.files(out, *same) == runs.files(tuned, *same)


def test_without_a_test_set_pretraining_has_seen_neither_side_of_what_is_tested(
    run: Path, data: Path, tmp_path: Path
) -> None:
    from selftaught import bundle
    from selftaught.workflow.evaluate import seen_hashes
    from selftaught.workflow.jobs import job_called

    job, loaded, seen = job_called("translate"), bundle.load(run), seen_hashes(run)
    with pytest.raises(UserError, match=r"only \d+ pairs are left to test on"):
        job.parts(run, loaded, f"{data}/train?source=en&target=de", None, quiet=True)
    both = [*PAIRS, *((f"{a} Yes", f"{b} Ja") for a, b in PAIRS)]
    parts = job.parts(run, loaded, both, None, quiet=True)
    tested = parts.test.subset(parts.test_index)
    assert not set(tested.pairs.source.hashes.tolist()) & set(seen.tolist())  # type: ignore[attr-defined]
    assert not set(tested.pairs.target.hashes.tolist()) & set(seen.tolist())  # type: ignore[attr-defined]
    assert not set(parts.train.hashes[parts.train_index].tolist()) & set(tested.hashes.tolist())
    alone = shutil.copytree(run / "encoder", tmp_path / "alone" / "encoder")
    protocol = job.parts(alone, loaded, both, None, quiet=True).protocol
    assert protocol["split"] == "a tenth by content hash; what pretraining saw is unknown"
    assert protocol["seen_by_pretraining"] == "unknown"
    # One sentence that it happened to see does not become all that teaches.
    np.save(alone / "seen.npy", parts.test.pairs.source.hashes[-1:])  # type: ignore[attr-defined]
    by_chance = job.parts(alone, loaded, both, None, quiet=True)
    assert by_chance.protocol["split"] == "a tenth by content hash, neither side seen by pretraining"
    assert len(by_chance.train_index) > 4 * len(by_chance.test_index)
    few = job.draw(parts, 20, seed=0)
    assert len(few) == 20 == len(set(few.tolist()))
    assert set(few.tolist()) <= set(parts.train_index.tolist())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("DATA/train?source=en&target=fr", "--task", "translate"), "train.fr does not exist"),
        (("DATA/test.csv", "--task", "translte"), "unknown task 'translte'; did you mean 'translate'?"),
        (("DATA/test.csv", "--task", "translate", "--set", "task.beams=3"), "did you mean 'task.beam'?"),
        (("DATA/test.csv", "--task", "translate", "--set", "task.beam=0"), "'task.beam' is 0; it must be 1 or more"),
        (("DATA/train?source=en&target=de", "--task", "translate", "--test", "DATA/test.csv", "--labels", 500), "156"),
    ],
)
def test_bad_requests(words: tuple[object, ...], message: str, run: Path, data: Path, tmp_path: Path) -> None:
    given = [str(w).replace("DATA", str(data)) for w in words]
    result = runs.run("finetune", run, *given, "--out", tmp_path / "out", "--quiet")
    assert message in runs.one_line(result, 2)
    assert not (tmp_path / "out").exists()


def test_pictures_cannot_be_translated(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, "--steps", 1, "--batch", 16, "--out", out)
    said = runs.one_line(runs.run("finetune", out, data / "test.csv", "--task", "translate"), 2)
    assert "task 'translate' works on text, not on image" in said
