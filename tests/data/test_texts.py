"""Corpora: what becomes a document, what is left out and why, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.modality.corpus import CHINESE, texts

from selftaught.data import open_data, text_files, tokens
from selftaught.data.text_audit import audit_texts, text_offers
from selftaught.data.text_files import CUT
from selftaught.data.texts import TextSource, from_list
from selftaught.data.tokens import tokenized
from selftaught.errors import UserError
from selftaught.modality.text import Tokenizer


def opened(data: object, tmp_path: Path, said: list[str] | None = None) -> TextSource:
    source = open_data(data, cache=tmp_path / "cache", say=(said if said is not None else []).append)
    assert isinstance(source, TextSource)
    return source


def contents(source: TextSource) -> list[str]:
    return list(source.texts(np.arange(len(source))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    for i, text in enumerate(texts()[:12]):
        (root / ("a", "b", "c")[i % 3]).mkdir(parents=True, exist_ok=True)
        (root / ("a", "b", "c")[i % 3] / f"{i:02d}.txt").write_text(text, "utf-8")
    return root


def test_a_folder_of_files(folder: Path, tmp_path: Path) -> None:
    source = opened(folder, tmp_path)
    assert source.names[0] == "a/00.txt"
    assert contents(source)[0] == texts()[0].strip()
    assert source.classes == ["a", "b", "c"]
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.text(0, 10) == texts()[0].strip()[:10]
    part = source.subset(np.array([5, 1]))
    assert [part.text(0), part.text(1)] == [source.text(5), source.text(1)]


def test_the_cache_is_used_again_and_a_damaged_one_made_anew(folder: Path, tmp_path: Path) -> None:
    first, said = opened(folder, tmp_path), []
    expected, fingerprint = contents(first), first.fingerprint
    again = opened(folder, tmp_path, said)
    assert any("using prepared texts" in line for line in said)
    assert (contents(again), again.fingerprint) == (expected, fingerprint)
    file = next((tmp_path / "cache").glob("text*/text.bin"))
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:-5])
    assert contents(opened(folder, tmp_path)) == expected
    (folder / "a" / "00.txt").write_text("something else", "utf-8")
    assert opened(folder, tmp_path).fingerprint != fingerprint


def test_lines_paragraphs_and_files(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\r\nthree", "utf-8")
    paragraphs = tmp_path / "paragraphs.txt"
    paragraphs.write_text("one\ntwo\n\n\nthree\n\n four\nfive \n", "utf-8")
    said: list[str] = []
    assert contents(opened(f"{lines}?split=line", tmp_path)) == ["one", "two", "three"]
    assert contents(opened(paragraphs, tmp_path, said)) == ["one\ntwo", "three", "four\nfive"]
    assert said[0].startswith("paragraphs.txt: documents are separated by blank lines (?split=file or ?split=line")
    assert opened(f"{paragraphs}?split=line", tmp_path).names[2] == "paragraphs.txt:5"
    with pytest.raises(UserError, match="holds one document only; many are needed"):
        opened(f"{paragraphs}?split=file", tmp_path)
    long = tmp_path / "long.txt"
    text = "\n\nOnce more:\n" + "a line of it \n\n" * 1500 + "  the end\n"
    long.write_text(text, "utf-8")
    parts = contents(opened(f"{long}?split=file", tmp_path))
    assert "".join(parts) == text
    assert len(parts) == 6
    assert max(map(len, parts)) <= 4096
    with pytest.raises(UserError, match="split 'page' is unknown; use file, line or blank"):
        opened(f"{paragraphs}?split=page", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030", "big5"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "reviews.txt"
    long = [text.replace("披萨", "比萨") * 5 for text in CHINESE]
    if encoding == "big5":
        long = [
            "今天的天氣很好我們一起去公園玩他說圖書館裡有很多書可以看" * 10,
            "晚上吃了牛肉麵味道不錯價錢也不貴下次還要再來" * 10,
        ]
    file.write_bytes("\n".join(long).encode(encoding))
    assert contents(opened(f"{file}?split=line", tmp_path)) == long


def test_bad_documents_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    for i in range(40):
        (root / f"{i:02d}.txt").write_text(f"document number {i}", "utf-8")
    (root / "40.txt").write_bytes(b"\x7fELF\0\0\1\2")
    (root / "41.txt").write_bytes(b"gut" + b" " * 70_000 + b"\xff\xfe")
    (root / "42.txt").write_text("   \n")
    source = opened(root, tmp_path)
    assert len(source) == 40
    assert [tuple(s) for s in source.skipped] == [
        ("40.txt", "binary file (it holds zero bytes)"),
        ("41.txt", "not utf-8 from byte 70003 on"),
        ("42.txt", "it is empty"),
    ]
    lines = tmp_path / "lines.txt"
    lines.write_bytes("好 line\n".encode() * 50 + b"broken \xff line\n" + b"fine again\n")
    source = opened(f"{lines}?split=line", tmp_path)
    assert [tuple(s) for s in source.skipped] == [("lines.txt:51", "bytes that its encoding does not allow")]
    assert contents(source)[-1] == "fine again"


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "endless.txt"
    file.write_text("word 深度 " * (CUT // 4), "utf-8")
    source = opened(file, tmp_path)
    assert len(source) > 2
    assert source.sizes.max() <= 4 * CUT
    assert " ".join(contents(source)).split() == ("word 深度 " * (CUT // 4)).split()


def test_a_line_that_is_too_long_is_left_out_and_the_next_ones_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LONGEST", 100)
    rows = [f"document number {i}" for i in range(40)]
    long = "x" * 350
    exact = "y" * (100 - len('{"text": ""}') - 1)  # with its end of line as long as what is read at once
    lines = tmp_path / "lines.jsonl"
    given = [*rows[:20], long, exact, *rows[20:]]
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in given), "utf-8")
    csv = tmp_path / "rows.csv"
    csv.write_text("text,label\n" + "".join(f"{text},1\n" for text in [*rows[:20], long, *rows[20:]]), "utf-8")
    for file, skipped in ((lines, ["lines.jsonl:21", "lines.jsonl:22"]), (csv, ["row 22"])):
        source = open_data(file, cache=tmp_path / "cache", max_bad=0.1)
        assert isinstance(source, TextSource)
        assert contents(source) == rows
        assert [tuple(s) for s in source.skipped] == [(name, "a line of 64 MB or more") for name in skipped]


_PEAK = """
import sys
from pathlib import Path
import selftaught.workflow.inspect
from selftaught.data import open_data, text_files, tokens
status = Path("/proc/self/status")  # and not getrusage, whose peak a process has from the one that started it
peak = lambda: int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024
Path("/proc/self/clear_refs").write_text("5")
base = peak()
source = open_data(sys.argv[1], say=lambda line: None)
opened = peak()
selftaught.workflow.inspect.inspect(sys.argv[1], None, False, True)
print(len(source), int(source.sizes.sum()), opened - base, peak() - base)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_an_endless_line_takes_no_endless_memory(tmp_path: Path) -> None:
    """200 MB without an end of line: opened in 50 MB, whatever its length; an audit maps the prepared file besides."""
    file = tmp_path / "endless.txt"
    draw = np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as stream:
        size = 0
        while size < 200_000_000:
            text = " ".join(f"word{n} 深度" for n in draw.integers(0, 50_000, 100_000)) + " "
            size += len(text.encode())
            stream.write(text)
    done = subprocess.run([sys.executable, "-c", _PEAK, str(file)], capture_output=True, text=True, check=True)
    count, size, opened_in, audited_in = map(int, done.stdout.split())
    assert count > 100
    assert size > 150_000_000
    assert opened_in < 50
    assert audited_in < size / 1e6 + 150


def test_tables_and_json_lines(tmp_path: Path) -> None:
    rows = [("good food", "1"), ("bad food", "0"), ("cold, slow", "0")]
    csv = tmp_path / "reviews.csv"
    csv.write_text("label,review\n" + "\n".join(f'{b},"{a}"' for a, b in rows), "utf-8")
    tsv = tmp_path / "reviews.tsv"
    tsv.write_text("class\tsaid\n" + "\n".join(f"{b}\t{a}" for a, b in rows), "utf-8")
    parquet = tmp_path / "reviews.parquet"
    pq.write_table(pa.table({"text": [a for a, _ in rows], "label": [int(b) for _, b in rows]}), parquet)
    lines = tmp_path / "reviews.jsonl"
    lines.write_text("\n".join(json.dumps({"text": a, "label": int(b)}) for a, b in rows), "utf-8")
    for data in (csv, f"{tsv}?text=said", parquet, lines):
        source = opened(data, tmp_path)
        assert contents(source) == [a for a, _ in rows]
        assert source.labels is not None
        assert [source.classes[i] for i in source.labels] == [b for _, b in rows]
    with pytest.raises(UserError, match="has no column 'body'"):
        opened(f"{csv}?text=body", tmp_path)
    lines.write_text('{"text": "a"}\n' * 40 + '{"words": 3}\nnot json\n' + '{"text": "b"}\n' * 40, "utf-8")
    assert [s.reason for s in opened(lines, tmp_path).skipped] == ["not a JSON object with a text field"] * 2


def test_lists_of_strings_are_texts_and_lists_of_paths_are_not(tmp_path: Path) -> None:
    source = open_data(texts())
    assert isinstance(source, TextSource)
    assert contents(source) == [text.strip() for text in texts()]
    names = tmp_path / "list.txt"
    names.write_text("one.png\ntwo.png\n")
    with pytest.raises(UserError, match="pictures"):
        open_data(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"  \n \n", "holds no text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 10, r"1 of 1 documents in .* cannot be used, .* binary file"),
        (b"one line", "holds one document only"),
    ],
)
def test_what_is_no_corpus(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        opened(file, tmp_path)


def test_the_head_of_a_text_is_whole_characters() -> None:
    source = from_list(["深度学习" * 5, "a深" * 9, "short"])
    for i in range(3):
        assert [source.text(i, n) for n in range(1, 30)] == [source.text(i)[:n] for n in range(1, 30)]


@pytest.mark.parametrize("most", [1, 3000, 1 << 21])
def test_pieces_are_the_documents(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_BYTES", most)
    source = open_data(texts())
    assert isinstance(source, TextSource)
    tokenizer = Tokenizer.train(texts(), "wordpiece", 1000)
    for cache in (None, tmp_path, tmp_path):  # made, written, read again
        found = tokenized(source, tokenizer, 20, cache, lambda done, total: None)
        index = np.array([3, 0, 40])
        pieces, owner = found.cut(index)
        whole = tokenizer.encode([source.text(int(i)) for i in index])
        for k in range(3):
            rows = np.flatnonzero(owner == k)
            batch = pieces.fetch(rows)
            kept = [batch["ids"][r, : batch["length"][r]] for r in range(len(rows))]
            assert np.concatenate(kept).tolist() == whole[k].ids.tolist()
            lengths = batch["length"].tolist()
            assert max(lengths) <= 20
            assert max(lengths) - min(lengths) <= 1
            assert (pieces.hashes[rows] == source.hashes[index[k]]).all()
        batch = found.fetch(index)
        assert batch["ids"][1, : batch["length"][1]].tolist() == whole[1].ids.tolist()[:20]
        assert batch["starts"][1, : batch["length"][1]].tolist() == whole[1].starts.tolist()[:20]


def test_an_audit_names_scripts_duplicates_and_leaks() -> None:
    source, other = open_data(texts() + texts()[:3]), open_data([*texts()[:5], "a new one"])
    assert isinstance(source, TextSource)
    assert isinstance(other, TextSource)
    found = audit_texts(source, other)
    assert (found.exact_extra, found.leak_exact, found.conflicting) == (3, 8, 0)
    assert found.exact[0] == ["text 0", f"text {len(texts())}"]
    assert next(iter(found.scripts)) == "Latin"
    assert "Chinese" in audit_texts(open_data(list(CHINESE))).scripts  # type: ignore[arg-type]
    assert text_offers(found)["documents"][0]
    assert not text_offers(audit_texts(other))["documents"][0]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("非常好，很满意！", "gbk"),
        ("质量不错", "gbk"),
        ("今天的外卖很好吃，送餐也很快！" * 400 + "a" + "下次还会再来。" * 400, "gbk"),  # cut within a character
        ("배송이 빠르고 포장도 꼼꼼합니다. 몸이 아파요", "cp949"),
        ("대한민국의 수도는 서울이다. " * 400, "cp949"),
        ("今日は天気がとてもいいです。" * 3, "shift_jis"),
        ("東京大学の学生が図書館で本を読む。a\n" * 300, "shift_jis"),
        ("今天的天氣很好，我們一起去公園玩a\n" * 300, "big5"),
        ("Хороший товар, быстрая доставка, очень понравился. " * 20, "koi8-r"),
    ],
)
def test_languages_are_told_apart(text: str, encoding: str, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_bytes(f"{text}{name}".encode(encoding))
    assert contents(opened(tmp_path, tmp_path)) == [f"{text}a", f"{text}b"]


def test_a_stray_quote_costs_its_own_row_alone(tmp_path: Path) -> None:
    for stray, end in (('"good product', ""), ('"good product', '"fine, too"'), ("fine", '"open')):
        rows = [f"{i},text number {i}" for i in range(1000)]
        rows[3], rows[500], rows[999] = f"3,{stray}", '500,"two\n\nlines, and ""more"""', f"999,{end}"
        rows[600] = '600,"so" to speak'
        file = tmp_path / "a.csv"
        file.write_text("id,text\n" + "\n".join(rows), "utf-8")
        source = opened(file, tmp_path)
        bad = [n for n, text in ((5, stray), (1001, end)) if text in ('"good product', '"open')]
        skipped = [(f"row {n}", "a quote that is not closed") for n in bad] + [("row 1001", "it is empty")] * (not end)
        assert [tuple(s) for s in source.skipped] == skipped
        assert contents(source)[500 - (5 in bad)] == 'two\n\nlines, and "more"'
        assert len(source) == 1000 - len(skipped)
        assert source.sizes.max() < 30


def test_json_lines_without_a_label_are_texts(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"text": f"text {i}"} | ({"kind": f"k{i % 2}"} if i < 4 else {}) for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = opened(f"{file}?label=kind", tmp_path)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1] + [-1] * 16
    assert source.skipped == []
    with pytest.raises(UserError, match="has no column 'kid'"):
        opened(f"{file}?label=kid", tmp_path)


def test_a_column_may_have_a_long_name(tmp_path: Path) -> None:
    name = "评论内容" * 20
    file = tmp_path / "a.csv"
    file.write_text(f"id,{name},b\n1,one,two\n2,three,four\n", "utf-8")
    assert contents(opened(f"{file}?text={name}", tmp_path)) == ["one", "three"]
    assert contents(opened(f"{file}?text=b", tmp_path)) == ["two", "four"]


def test_empty_rows_are_counted_and_are_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id,text\n" + "".join(f"{i},{'' if i % 4 == 1 else f'text {i}'}\n" for i in range(40)))
    for _ in range(2):  # written, then reused
        source = opened(file, tmp_path)
        assert len(source) == 30
        assert [tuple(s) for s in source.skipped] == [(f"row {i + 2}", "it is empty") for i in range(1, 40, 4)]
    file.write_text("id,text\n1,\n2, \n")
    with pytest.raises(UserError, match="holds no text; every document is empty"):
        opened(file, tmp_path)
