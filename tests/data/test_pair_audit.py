"""inspect on pairs of texts: both sides, scores, copies, leaks; opened as pairs wherever they are named so."""

import json
from pathlib import Path

import pytest

import selftaught
from selftaught.data.pair_audit import audit_pairs
from selftaught.data.text_pairs import open_pairs
from selftaught.errors import UserError

PAIRS = [
    ("a dog runs", "ein Hund läuft"),
    ("a dog runs", "ein Hund rennt"),
    ("the same words", "the same words"),
    ("a dog runs", "ein Hund läuft"),
    ("a hound runs", "ein Hund läuft"),
    ("快递员迷路了", "der Kurier hat sich verlaufen"),
]


def quiet(line: str) -> None:
    pass


def lines(root: Path) -> str:
    for end, side in (("en", 0), ("de", 1)):
        (root / f"t.{end}").write_text("".join(pair[side] + "\n" for pair in PAIRS), "utf-8")
    return f"{root}/t?source=en&target=de"


def test_sides_copies_and_ambiguous_texts_are_counted(tmp_path: Path) -> None:
    done: list[int] = []
    found = audit_pairs(open_pairs(lines(tmp_path), quiet), None, done.append)
    assert (found.pairs, found.exact_extra, found.exact) == (6, 1, [["t.en:1", "t.en:4"]])
    assert (found.several_targets, found.several_sources, found.same) == (1, 1, 1)
    assert (found.source.samples, found.source.exact_extra, found.target.exact_extra) == (6, 2, 2)
    assert found.source.length == (6, 10, 14)
    assert set(found.source.scripts) == {"Latin", "Chinese"}
    assert set(found.target.scripts) == {"Latin"}
    assert (found.scores, done[-1]) == (None, 12)
    json.dumps(found.to_json())


def test_scores_and_what_was_left_out(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("sentence1,sentence2,score\na,b,1\nc,d,4.5\ne,f,3\ng,,2\n")
    found = audit_pairs(open_pairs(table, quiet))
    assert found.scores == (1.0, 3.0, 4.5)
    assert (found.skipped_count, found.skipped) == (1, [("row 5", "its target is empty")])


def test_inspect_knows_pairs_and_their_leaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.csv"
    other.write_text("source,target\na dog runs,un chien court\nx,y\n")
    found = selftaught.inspect(lines(tmp_path), other=other)
    assert (found["pairs"], found["tasks"], len(found["fingerprint"])) == (6, [], 32)
    assert (found["source"]["leak_exact"], found["target"]["leak_exact"]) == (3, 0)
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "source 4 different texts",
        "scores none",
        "1 exact copies of pairs; 1 pairs of a text and itself t.en:1 = t.en:4",
        "1 sources with several targets, 1 targets with several sources",
        "source leakage 3 exact and 0 near copies",
    ):
        assert words in said
    assert "cost on this machine" not in said, "no task is pretrained on pairs"


def test_pairs_are_not_looked_for_in_other_data(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one line\nand another\n")
    with pytest.raises(UserError, match="text_pairs data cannot look for leaks from text data"):
        selftaught.inspect(lines(tmp_path), other=tmp_path / "texts.txt", quiet=True)
