"""Tokenizers: the four kinds, what words are to them, and files that are none."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.modality.corpus import CHINESE, texts

from selftaught.errors import UserError
from selftaught.modality.text.tokenizer import KINDS, SPECIAL, Tokenizer


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(texts(), request.param, 2000)


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words as groups of tokens, decoded."""
    found = tokenizer.encode([text])[0]
    groups = np.split(found.ids, np.flatnonzero(found.starts)[1:])
    return [tokenizer.backend.decode(group.tolist()).strip() for group in groups]


def test_specials_and_size(tokenizer: Tokenizer) -> None:
    ids = (tokenizer.pad, tokenizer.unknown, tokenizer.first, tokenizer.last, tokenizer.mask)
    assert ids == tuple(tokenizer.backend.token_to_id(name) for name in SPECIAL)
    assert len(SPECIAL) < tokenizer.vocabulary <= 2000


def test_it_survives_being_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.dump(), "utf-8")
    again = Tokenizer.load(tmp_path)
    for one, other in zip(tokenizer.encode(texts()), again.encode(texts()), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.starts, other.starts)


def test_transformers_reads_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "tokenizer.json").write_text(tokenizer.dump(), "utf-8")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in texts()[:50] + list(CHINESE):
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode([text])[0].ids.tolist()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_word_is_a_word(kind: str) -> None:
    """No punctuation in it, no space in it, all its tokens in it; of every family."""
    tokenizer = Tokenizer.train(texts(), kind, 600)
    text = "The tokenizer (unbelievably) splits, incomprehensibilities.\nA new-line follows it"
    found = words_of(tokenizer, text if kind != "wordpiece" else text.lower())
    expected = re.findall(r"\w+|[^\w\s]", text)
    shown = [word.replace(" ", "").lower() for word in found if word]
    assert shown == [word.lower() for word in expected]
    assert len(tokenizer.encode([text])[0].ids) > len(expected)  # at least one word is made of several tokens


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "char"])
def test_each_chinese_character_is_a_word(kind: str) -> None:
    tokenizer = Tokenizer.train(texts(), kind, 2000)
    for text in CHINESE:
        found = tokenizer.encode([text])[0]
        assert found.starts.sum() >= len(text.rstrip())
        assert [w for w in words_of(tokenizer, text) if w] == list(text.replace("，", ",").replace("！", "!")) or (
            kind != "unigram" and [w for w in words_of(tokenizer, text) if w] == list(text)
        )


def test_bytes_of_one_character_are_one_word() -> None:
    """Byte-level BPE that never saw Chinese spells a character in three tokens; they are hidden together."""
    tokenizer = Tokenizer.train([text for text in texts() if text.isascii()], "bpe", 600)
    found = tokenizer.encode(["深度"])[0]
    assert len(found.ids) == 6
    assert found.starts.tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "char"])
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    """In every process: hash tables of the trainer are ordered by chance in each."""
    code = (
        "from selftaught.modality.text.tokenizer import Tokenizer; from tests.modality.corpus import texts; "
        f"import sys; sys.stdout.write(Tokenizer.train(texts(), {kind!r}, 700).dump())"
    )
    root = Path(__file__).resolve().parents[2]
    found = {
        subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True).stdout for _ in "abc"
    }
    assert len(found) == 1
    assert Tokenizer.parse(found.pop().decode()).vocabulary <= 700


def test_wordpiece_knows_every_letter_it_has_room_for() -> None:
    tokenizer = Tokenizer.train(texts(), "wordpiece", 2000)
    for text in texts():
        assert tokenizer.unknown not in tokenizer.encode([text])[0].ids
    small = Tokenizer.train(["".join(map(chr, range(0x4E00, 0x5200))), "一丁"] * 2, "wordpiece", 300)
    assert small.vocabulary <= 300
    assert small.encode(["一丁"])[0].ids.tolist() == [small.backend.token_to_id(c) for c in "一丁"]
    assert small.encode([chr(0x51FF)])[0].ids.tolist() == [small.unknown]


def test_a_character_tokenizer_loses_nothing() -> None:
    tokenizer = Tokenizer.train(texts(), "char", 2000)
    for text in texts():
        assert tokenizer.decode(tokenizer.encode([text])[0].ids.tolist()) == text


def test_wordpiece_puts_no_spaces_between_chinese_characters() -> None:
    tokenizer = Tokenizer.train(texts(), "wordpiece", 2000)
    for text in (*CHINESE, "the error 好吃，the value"):
        said = tokenizer.decode(tokenizer.encode([text])[0].ids.tolist())
        assert said == text.replace("error 好吃，the", "error 好吃， the")


def test_tokens_are_spelled_as_people_read_them() -> None:
    tokenizer = Tokenizer.train(CHINESE * 9, "bpe", 500)
    mark, space, line, part = (tokenizer.encode([text])[0].ids.tolist()[0] for text in ("。", " ", "\n", "\u3400"))
    assert [tokenizer.spelled(i) for i in (mark, space, line)] == ["。", " ", "Ċ"]
    assert tokenizer.spelled(part) == tokenizer.backend.id_to_token(part)
    pieces = Tokenizer.train(texts(), "wordpiece", 600)
    assert pieces.spelled(int(pieces.encode(["tokenizers"])[0].ids[-1])) == "##s"


def test_empty_texts_have_no_tokens(tokenizer: Tokenizer) -> None:
    found = tokenizer.encode(["", "a"])
    assert (len(found[0].ids), len(found[0].starts)) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sentencepiece", 1000), "tokenizer 'sentencepiece' is unknown; use wordpiece, bpe, unigram or char"),
        (("bpe", 10), "vocabulary 10 is below 300 tokens"),
    ],
)
def test_bad_requests(arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokenizer.train(texts(), *arguments)


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer"):
        Tokenizer.load(tmp_path)
    other = json.loads(Tokenizer.train(texts(), "char", 2000).dump())
    other["added_tokens"] = [t for t in other["added_tokens"] if t["content"] != "[MASK]"]
    del other["model"]["vocab"]["[MASK]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"the tokenizer has no \[MASK\] token"):
        Tokenizer.load(tmp_path)
