"""Texts as people read them: every token where it stood, marks that say what was hidden behind what."""

import pytest
import torch
from tests.modality.corpus import CHINESE, texts

from selftaught.batch import Batch, Seen
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.modality.text.mask import Masking, fates, hide, shares
from selftaught.modality.text.pairs import pairs
from selftaught.modality.text.spans import printable, spans

KINDS = ("wordpiece", "bpe", "unigram", "char")


@pytest.fixture(scope="module", params=KINDS)
def modality(request: pytest.FixtureRequest) -> TextModality:
    return TextModality(Tokenizer.train(texts(), request.param, 600), 128)


def joined(named: list) -> list[str]:
    return ["".join(span.text for span in found) for _, found in named]


def test_pieces_join_to_the_text(modality: TextModality) -> None:
    t = modality.tokenizer
    for text in [*(text[:300] for text in texts()[:20]), *CHINESE, "a 好😀b", ""]:
        ids = t.encode([text])[0].ids.tolist()
        found = t.pieces(ids)
        assert sum(n for n, _ in found) == len(ids)
        assert "".join(piece for _, piece in found) == t.decode(ids)


def test_a_text_with_nothing_hidden_is_the_text(modality: TextModality) -> None:
    tokens = modality.plain(Batch(modality.inputs(CHINESE), torch.arange(6), 0, 0))
    for row, text in enumerate(CHINESE):
        ((name, found),) = spans(modality, Seen("reads", tokens), row)
        assert name == "reads"
        assert {span.fate for span in found} == {""}
        said = joined([(name, found)])[0]
        assert said.replace(" ", "") in (f"[CLS]{text}[SEP]", f"[CLS]{text.replace('，', ',').replace('！', '!')}[SEP]")
        assert not any(a == " " and b > "\u3400" and c > "\u3400" for c, a, b in zip(said, said[1:], said[2:]))


def test_marks_say_what_is_read_and_what_it_was(modality: TextModality) -> None:
    """Of tokens that are whole characters; the others' bytes share a mark."""
    samples = [*texts()[:20], *CHINESE]
    batch, masking = Batch(modality.inputs(samples), torch.arange(len(samples)), 0, 0), Masking(0.5, 0.3, 0.3)
    text = modality.plain(batch)
    hidden = hide(modality, text, batch, masking)
    found, t = fates(modality, text, hidden), modality.tokenizer
    seen, met = Seen("reads", hidden.shown, text, hidden.chosen), set()
    for row in range(len(samples)):
        n = int(text.valid[row].sum())
        pieces = t.pieces(text.ids[row, :n].tolist())
        ((_, got),) = spans(modality, seen, row)
        met |= {span.fate for span in got}
        if any(size > 1 for size, _ in pieces):
            assert bool(hidden.chosen[row].any()) == any(span.fate for span in got)
            continue
        expected = ""
        for i, (_, piece) in enumerate(pieces):
            piece = printable(piece)
            word = piece.lstrip() or piece
            instead = printable(t.decode([int(hidden.shown.ids[row, i])])).strip()
            marks = {"masked": f"[MASK→{word}]", "kept": f"[={word}]", "random": f"[{instead}→{word}]"}
            mark = next((marks[fate] for fate, where in found.items() if where[row, i]), None)
            expected += piece if mark is None else piece[: len(piece) - len(word)] + mark
        assert joined([("", got)]) == [expected]
    assert met == {"", "masked", "kept", "random"}


def test_shares_are_counted(modality: TextModality) -> None:
    batch = Batch(modality.inputs(texts()), torch.arange(len(texts())), 0, 0)
    text = modality.plain(batch)
    for words in (False, True):
        masking = Masking(0.2, 0.1, 0.3, words)
        hidden = hide(modality, text, batch, masking)
        rows = list(shares(modality, text, hidden, masking).values())
        assert [row.asked for row in rows] == [0.2, pytest.approx(0.6), 0.3, 0.1, 1.0 if words else None]
        assert all(abs(row.part / row.whole - row.asked) < 0.03 for row in rows[:4])
        assert sum(row.part for row in rows[1:4]) == rows[1].whole == rows[0].part == hidden.chosen.sum()
        touched, whole = rows[4].whole, rows[4].part
        assert whole == touched if words else whole <= touched <= rows[0].part


def test_a_pair_is_two_texts() -> None:
    modality = TextModality(Tokenizer.train(texts(), "wordpiece", 600), 64)
    batch = Batch(modality.inputs(["今天很好。明天不好。", "one two"]), torch.arange(2), 0, 0)
    seen = Seen("reads", pairs(modality, batch, "nsp").tokens)
    (a, first), (b, second) = spans(modality, seen, 0)
    assert (a, b) == ("reads A", "reads B")
    assert joined([(a, first), (b, second)])[0].startswith("[CLS] ")
    assert all(text.endswith("[SEP]") for text in joined([(a, first), (b, second)]))


def test_nothing_of_a_text_reaches_the_terminal_as_a_command() -> None:
    assert printable("a\x1b[31mb\r\nc\x07\x9b") == "a [31mb ↵c  "
