"""Chinese words by a segmenter: a word's tokens are together, in every family of tokenizers."""

import marshal
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.modality.corpus import CHINESE, texts

from selftaught.data.texts import from_list
from selftaught.data.tokens import tokenized
from selftaught.errors import UserError
from selftaught.modality.text import TextModality
from selftaught.modality.text import words as rooms
from selftaught.modality.text.tokenizer import KINDS, Tokenizer
from selftaught.modality.text.words import Segmenter
from selftaught.workflow.kinds.texts import Texts

jieba_or_skip = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import jieba"], capture_output=True).returncode != 0, reason="needs jieba"
)
SENTENCE = "北京大学的学生在图书馆里读书。"
WORDS = ["北京大学", "的", "学生", "在", "图书馆", "里", "读书", "。"]


def spans(words: list[str]) -> list[tuple[int, int]]:
    ends = np.cumsum([len(word) for word in words]).tolist()
    return list(zip([0, *ends[:-1]], ends))


@jieba_or_skip
def test_what_goes_on_with_a_word() -> None:
    found = Segmenter("jieba").inside(f"See: {SENTENCE} 好")
    begins = [5 + start for start, _ in spans(WORDS)]
    assert np.flatnonzero(found).tolist() == sorted(set(range(5, 5 + len(SENTENCE))) - set(begins))
    assert not Segmenter("jieba").inside("no Chinese, なし").any()


@jieba_or_skip
@pytest.mark.parametrize("kind", KINDS)
def test_a_word_keeps_its_tokens_together(kind: str) -> None:
    tokenizer = Tokenizer.train(texts(), kind, 2000, "jieba")
    one = tokenizer.backend.encode(SENTENCE, add_special_tokens=False)
    starts = tokenizer.encode([SENTENCE])[0].starts
    first = {begin: bool(start) for (begin, _), start in reversed(list(zip(one.offsets, starts)))}
    for start, stop in spans(WORDS):
        assert first.get(start, True)
        assert not any(first.get(inner, False) for inner in range(start + 1, stop))
    assert starts.sum() < len(SENTENCE) - 4
    assert Tokenizer.train(texts(), kind, 2000).encode([SENTENCE])[0].starts.sum() > starts.sum()


@jieba_or_skip
@pytest.mark.parametrize("kind", ["wordpiece", "char"])
def test_the_words_are_the_segmenters(kind: str) -> None:
    found = Tokenizer.train(texts(), kind, 2000, "jieba").encode([SENTENCE])[0]
    assert len(found.ids) == len(SENTENCE)
    assert np.flatnonzero(found.starts).tolist() == [start for start, _ in spans(WORDS)]


@jieba_or_skip
def test_bytes_that_were_never_seen_are_words_too() -> None:
    """Byte-level BPE that never saw Chinese: three tokens a character, and a word's are all together."""
    tokenizer = Tokenizer.train([text for text in texts() if text.isascii()], "bpe", 600, "jieba")
    found = tokenizer.encode(["图书馆里"])[0]
    assert len(found.ids) == 12
    assert np.flatnonzero(found.starts).tolist() == [0, 9]


@jieba_or_skip
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_chinese_stays_as_it_is(kind: str) -> None:
    plain, other = (Tokenizer.train([*CHINESE, *texts()], kind, 2000, words) for words in ("", "jieba"))
    for text in texts()[: -len(CHINESE)]:
        np.testing.assert_array_equal(plain.encode([text])[0].starts, other.encode([text])[0].starts)


@jieba_or_skip
def test_a_run_without_end_takes_no_quadratic_time() -> None:
    """jieba by itself takes a quarter of a second for 10 000 rare characters, 25 for 100 000."""
    assert rooms._CHINESE.findall("龘" * 600) == ["龘" * 256, "龘" * 256, "龘" * 88]
    assert len(Segmenter("jieba").inside("龘" * 100_000)) == 100_000


@jieba_or_skip
def test_the_preprocessing_keeps_it(tmp_path: Path) -> None:
    source = from_list(texts())
    plain, made = (
        Texts().fit(source, 32, np.arange(len(source)), {"vocabulary": 1000, **more}, "auto")
        for more in ({}, {"words": "jieba"})
    )
    assert plain.to_json() == {"length": 32, "vocabulary": 1000}
    assert made.to_json() == {"length": 32, "vocabulary": 1000, "words": "jieba"}
    assert made.files() == plain.files()
    for modality in (plain, made):
        again = TextModality.from_json(modality.to_json(), modality.files())
        assert (again.to_json(), again.inputs([SENTENCE])["starts"].tolist()) == (
            modality.to_json(),
            modality.inputs([SENTENCE])["starts"].tolist(),
        )
    # The same ids, but other words: neither finds the other's in the cache.
    for modality in (plain, made, plain, made):
        fetched = tokenized(source, modality.tokenizer, 30, tmp_path, lambda done, total: None)
        last = fetched.fetch(np.array([len(source) - 4]))["starts"]
        assert last[0].tolist() == modality.inputs([source.text(len(source) - 4)])["starts"][0].tolist()
    assert len(list(tmp_path.glob("tokens*"))) == 2


@jieba_or_skip
def test_it_is_quiet_and_reads_no_cache_that_others_may_write(tmp_path: Path) -> None:
    """jieba would load a marshalled dictionary from the temporary folder, or leave one there, and say so."""
    poison = marshal.dumps(({SENTENCE[:k]: 10**9 for k in range(1, 16)}, 10**9))
    (tmp_path / "jieba.cache").write_bytes(poison)
    code = f"from selftaught.modality.text.words import Segmenter; print(Segmenter('jieba').inside({SENTENCE!r}).sum())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == (str(len(SENTENCE) - len(WORDS)), "")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"jieba.cache": poison}


def test_what_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"text\.words 'thulac' is unknown; use jieba, or leave it out"):
        Tokenizer.train(texts(), "char", 2000, "thulac")
    monkeypatch.setitem(sys.modules, "jieba", None)
    rooms._jieba.cache_clear()
    with pytest.raises(UserError, match=r"needs the extra 'chinese': pip install 'selftaught\[chinese\]'"):
        Tokenizer.train(texts(), "char", 2000, "jieba")
    files = Tokenizer.train(texts(), "char", 2000).dump()
    with pytest.raises(UserError, match="needs the extra 'chinese'"):
        TextModality.from_json({"length": 9, "vocabulary": 2000, "words": "jieba"}, {"tokenizer.json": files})
