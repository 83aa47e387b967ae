"""Tokens as people read them: decoded, with what is hidden in them marked."""

import unicodedata
from typing import NamedTuple

from selftaught.batch import Seen
from selftaught.modality.text import TextModality
from selftaught.modality.text.mask import Hidden, fates
from selftaught.modality.text.tokenizer import Tokenizer

_PART = "\ufffd"  # stands for a byte that is no character by itself


class Span(NamedTuple):
    """A run of a text. fate: "" for tokens that are read as they were, else what became of them (`mask.fates`)."""

    text: str
    fate: str = ""


def spans(modality: TextModality, seen: Seen, row: int) -> list[tuple[str, list[Span]]]:
    """One text of a batch as (name, spans); two of them, A and B, where it is a pair.

    A hidden token is marked by what is read and what it was: `[MASK→word]`, `[other→word]`, or `[=word]` where it is read
    as it was. The spans of a text without hidden tokens join to the text.
    """
    read, truth = seen.read, seen.truth or seen.read
    n = int(read.valid[row].sum())
    fate = [""] * n
    if seen.chosen is not None:
        for name, where in fates(modality, truth, Hidden(read, seen.chosen)).items():
            fate = [name if there else f for f, there in zip(fate, where[row, :n].tolist(), strict=True)]
    ids = truth.ids[row, :n].tolist(), read.ids[row, :n].tolist()
    if read.segments is None:
        return [(seen.name, _marked(modality.tokenizer, *ids, fate))]
    cut = n - int(read.segments[row, :n].sum())
    sides = {"A": slice(0, cut), "B": slice(cut, n)}
    return [
        (f"{seen.name} {side}", _marked(modality.tokenizer, ids[0][part], ids[1][part], fate[part]))
        for side, part in sides.items()
        if part.start < part.stop
    ]


def _marked(tokenizer: Tokenizer, truth: list[int], read: list[int], fate: list[str]) -> list[Span]:
    found, at = list[Span](), 0
    for size, text in tokenizer.pieces(truth):
        part = range(at, at + size)
        at += size
        text = printable(text)
        there = next((fate[i] for i in part if fate[i]), "")
        if there:
            word = text.lstrip() or text
            parts = {"masked": "MASK", "kept": _PART, "": _PART}
            instead = "".join(parts.get(fate[i]) or printable(tokenizer.decode([read[i]])).strip() for i in part)
            sign = "=" if all(fate[i] == "kept" for i in part) else f"{instead}→"
            found += [Span(text[: len(text) - len(word)]), Span(f"[{sign}{word}]", there)]
        else:
            found.append(Span(text))
    return [span for span in found if span.text]


def printable(text: str) -> str:
    """A text on one line, without what a terminal would obey; ends of lines are ↵."""
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text.replace("\n", "↵"))
