"""Pairs of texts: every way to hold them gives the same pairs; empty sides are left out by name; bad files are one line."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selftaught.data.text_pairs import PairSource, is_pairs, open_pairs, open_sources, tokenized_pairs
from selftaught.errors import UserError
from selftaught.modality.text import Tokenizer

PAIRS = [(f"the dog number {i}", f"der Hund Nummer {i}, schön") for i in range(30)]


def quiet(line: str) -> None:
    pass


def texts(found: PairSource) -> list[tuple[str, str]]:
    index = np.arange(len(found))
    return list(zip(found.source.texts(index), found.target.texts(index), strict=True))


def write(root: Path) -> dict[str, str]:
    """The same pairs in every form, by what a user types."""
    root.mkdir(exist_ok=True)
    for name, delimiter in (("pairs.csv", ","), ("pairs.tsv", "\t")):
        with (root / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows([("source", "target"), *PAIRS])
    with (root / "named.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "en", "de"), *((i, *pair) for i, pair in enumerate(PAIRS))])
    (root / "pairs.jsonl").write_text("".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in PAIRS), "utf-8")
    pq.write_table(pa.table({"src": [a for a, _ in PAIRS], "tgt": [b for _, b in PAIRS]}), root / "pairs.parquet")
    lines = root / "lines"
    lines.mkdir()
    for end, side in (("en", 0), ("de", 1)):
        (lines / f"train.{end}").write_text("".join(pair[side] + "\n" for pair in PAIRS), "utf-8")
    tables = root / "tables"
    tables.mkdir()
    (tables / "a.tsv").write_bytes((root / "pairs.tsv").read_bytes())
    forms = ["pairs.csv", "pairs.tsv", "pairs.jsonl", "pairs.parquet", "named.csv?source=en&target=de", "tables"]
    forms += ["pairs.jsonl?source=en&target=de", "lines/train?source=en&target=de", "lines?source=en&target=de"]
    return {form: str(root / form) for form in forms}


def test_every_form_gives_the_same_pairs(tmp_path: Path) -> None:
    found = {form: open_pairs(data, quiet) for form, data in write(tmp_path / "x").items()}
    found["a list"] = open_pairs(PAIRS, quiet)
    for form, pairs in found.items():
        assert texts(pairs) == PAIRS, form
        assert len({pairs.fingerprint for pairs in found.values()}) == 1
    assert found["lines/train?source=en&target=de"].names[2] == "train.en:3"
    backwards = open_pairs(f"{tmp_path}/x/lines/train?source=de&target=en", quiet)
    assert texts(backwards) == [(b, a) for a, b in PAIRS]
    assert backwards.fingerprint != found["a list"].fingerprint


def test_sides_that_are_empty_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    for end, middle in (("en", "\n  \n\nx\n"), ("de", "\n\ny\n\n")):
        (tmp_path / f"t.{end}").write_text("".join(f"{end} {i}\n" for i in range(9)) + middle + f"{end} last\n")
    said: list[str] = []
    found = open_pairs(f"{tmp_path}/t?source=en&target=de", said.append)
    assert len(found) == 10
    assert texts(found)[-1] == ("en last", "de last")
    assert [tuple(s) for s in found.skipped] == [
        ("t.en:10", "both sides are empty"),
        ("t.en:11", "both sides are empty"),
        ("t.en:12", "its source is empty"),
        ("t.en:13", "its target is empty"),
    ]
    assert said == ["4 pairs left out, the first t.en:10: both sides are empty"]
    table = tmp_path / "t.csv"
    table.write_text("source,target\na,b\nc,\n,d\ne,f\n")
    assert [s.reason for s in open_pairs(table, quiet).skipped] == ["its target is empty", "its source is empty"]


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ({"t.en": "a\nb\nc\n", "t.de": "a\nb\n"}, "t?source=en&target=de", "has 3 lines and .*t.de 2; line n of one"),
        ({"t.en": "a\nb\n", "t.de": "a\nb\n\n"}, "t?source=en&target=de", "has 2 lines and .*t.de 3"),
        ({"t.en": "a\n"}, "t?source=en&target=de", r"t\.de does not exist"),
        (
            {"t.csv": "x,y,z\n1,2,3\n"},
            "t.csv",
            "no column source, src or sentence1; its columns: x, y, z; name two: t.csv.source=",
        ),
        ({"t.csv": "x,y,z\n1,2,3\n"}, "t.csv?source=x&target=w", "no column 'w'"),
        ({"t.csv": "source,target\na,b\n"}, "t.csv", "holds 1 pairs with text on both sides"),
        ({"t.csv": "source,target\na,b\n"}, "t.csv?sorce=a", "'sorce' after . is no side of a pair"),
        ({"t.en": "a\n"}, "t.en", "is one file and no table"),
        ({}, "nothing", "nothing does not exist; pass a table of two columns"),
        ({"f/x.txt": "a"}, "f?source=en&target=de", "holds no file that ends in .en"),
        ({"t.en": "a\0\nb\n", "t.de": "a\nb\n"}, "t?source=en&target=de", "binary file"),
        ({"t.csv": ""}, "t.csv", "has no columns that can be read"),
    ],
)
def test_bad_data_is_one_line(files: dict[str, str], data: str, message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        open_pairs(tmp_path / data, quiet)
    assert "\n" not in str(error.value)


def test_lines_that_cannot_be_decoded_are_few_or_an_error(tmp_path: Path) -> None:
    good = "".join(f"schön {i}\n" for i in range(100)).encode()
    for broken, refused in ((1, False), (9, True)):
        (tmp_path / "t.en").write_bytes(good + b"\xff bad\n" * broken)
        (tmp_path / "t.de").write_bytes(good + b"fine\n" * broken)
        if refused:
            with pytest.raises(UserError, match=r"9 of 109 pairs in .* cannot be read, more than 5%"):
                open_pairs(tmp_path / "t?source=en&target=de", quiet)
        else:
            assert len(open_pairs(tmp_path / "t?source=en&target=de", quiet)) == 100


def test_texts_to_translate_need_no_target(tmp_path: Path) -> None:
    write(tmp_path / "x")
    (tmp_path / "x/lines/train.de").unlink()
    for data in ("lines/train?source=en", "pairs.csv", "named.csv?source=en"):
        found = open_sources(tmp_path / "x" / data, quiet)
        assert found is not None
        assert list(found.texts(np.arange(len(found)))) == [a for a, _ in PAIRS]
    assert found.names[0] == "row 2"
    assert open_sources(tmp_path / "x/lines", quiet) is None
    assert open_sources(["a", "b"], quiet) is None


def test_scores_are_numbers_or_their_pair_is_left_out(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 2} for i in range(30)]
    for name, kept in (("t.jsonl", rows), ("bad.jsonl", [*rows, {**rows[0], "score": "high"}])):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in kept))
        found = open_pairs(tmp_path / name, quiet)
        assert found.scores is not None
        assert found.scores.tolist() == [i / 2 for i in range(30)]
        assert is_pairs(tmp_path / name)
    assert [tuple(s) for s in found.skipped] == [("bad.jsonl:31", "its score 'high' is no number")]
    assert found.subset(np.array([4])).scores.tolist() == [2.0]  # type: ignore[union-attr]
    assert open_pairs(PAIRS, quiet).scores is None
    (tmp_path / "labelled.csv").write_text("text,source,target\na,b,c\n")
    assert not is_pairs(tmp_path / "labelled.csv")
    assert is_pairs(f"{tmp_path}/labelled.csv?source=source&target=target")


def test_tokens_of_both_sides_by_name(tmp_path: Path) -> None:
    pairs = open_pairs(PAIRS, quiet)
    tokenizer = Tokenizer.train([x for pair in PAIRS for x in pair], "bpe", 400)
    found = tokenized_pairs(pairs, tokenizer, 5, tmp_path, "target_", lambda done, total: None)
    inputs = found.fetch(np.array([3, 1]))
    sides = {f"{prefix}{n}" for prefix in ("", "target_") for n in ("ids", "length", "starts", "document", "edges")}
    assert set(inputs) == sides
    for row, i in enumerate((3, 1)):
        for side, prefix in enumerate(("", "target_")):
            ids = inputs[f"{prefix}ids"][row, : inputs[f"{prefix}length"][row]].tolist()
            assert ids == tokenizer.encode([PAIRS[i][side]])[0].ids[:5].tolist()
    fits = found.fitting(5)
    assert fits.sum() < len(found)
    assert texts(found.subset(np.flatnonzero(~fits)).pairs)[0] == PAIRS[int(np.flatnonzero(~fits)[0])]
    assert found.fingerprint == pairs.fingerprint
