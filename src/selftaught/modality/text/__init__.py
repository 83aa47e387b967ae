"""Text: token ids of a batch to what an encoder reads, whole or as a random view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.batch import Batch, Share, Tokens
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.modality.text.tokenizer import Tokenizer

__all__ = ["TextModality", "TextView", "Tokenizer"]

TOKENIZER = "tokenizer.json"
LEAST = 8
"""Tokens: what is shorter than this, special ones included, is no sequence to learn from."""


@dataclass(frozen=True)
class TextView:
    """A family of random views of a text.

    crop: bounds of the share of the tokens that is kept, one run of them, uniform. drop: probability that a token of it
    is left out. The first and last special tokens always stay, and at least one token between them.
    """

    crop: tuple[float, float] = (1.0, 1.0)
    drop: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise UserError(f"view.crop is {self.crop}, but must be two ascending shares in (0, 1]")
        if not 0 <= self.drop < 1:
            raise UserError(f"view.drop is {self.drop}, but must be a probability in [0, 1)")


class TextModality(Modality):
    """Token sequences [CLS] ... [SEP] of at most `length` tokens.

    A batch's inputs are `ids` int64 [B, L] without special tokens, `length` int64 [B], how many of a row are real,
    `starts` bool [B, L], which of them begin a word, `document` int64 [B], which document a row is a piece of, and `edges`
    bool [B, 2], whether it begins and ends where the document does.
    """

    name = "text"
    frame: ClassVar[int] = 1
    """Special tokens on either side of a text."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        if length < LEAST:
            raise UserError(f"length {length} is below {LEAST} tokens; use --size {LEAST} or more")
        self.tokenizer = tokenizer
        self.size = length

    @property
    def room(self) -> int:
        """Tokens of text in a sequence, beside the special ones."""
        return self.size - 2 * self.frame

    def window(self, batch: Batch, stream: int) -> Tokens:
        """What a causal language model learns from: the texts as they are (see RunningText.window)."""
        return self.plain(batch)

    def contrastive_view(self) -> TextView:
        """A long run of the tokens with a tenth of them left out."""
        return TextView(crop=(0.6, 1.0), drop=0.1)

    def light_view(self) -> TextView:
        """The text as it is."""
        return TextView()

    def view(self, batch: Batch, view: TextView, stream: int) -> Tokens:
        """One random view of each text; a function of (seed, step, stream, sample)."""
        if view == TextView():
            return self.plain(batch)
        whole = self.plain(batch)
        inner = whole.valid.sum(1) - 2 * self.frame
        u = batch.uniform(stream, whole.ids.shape[1] + 2)
        low, high = view.crop
        kept = ((low + u[:, 0] * (high - low)) * inner).ceil().clamp_min(1)
        begin = self.frame + (u[:, 1] * (inner - kept + 1)).floor()
        at = torch.arange(whole.ids.shape[1], device=u.device)
        inside = (at >= begin[:, None]) & (at < (begin + kept)[:, None])
        stays = inside & (u[:, 2:] >= view.drop)
        # The token with the largest number stays whatever happens, so that no text becomes empty.
        surest = u[:, 2:].masked_fill(~inside, -1.0).argmax(1, keepdim=True)
        stays.scatter_(1, surest, True)
        stays |= (at < self.frame) | (at >= (inner + self.frame)[:, None])
        return _closed_up(whole, stays & whole.valid, self.tokenizer.pad)

    def shares(self, batch: Batch, view: TextView, made: Sequence[Tokens]) -> dict[str, Share]:
        """The share of the tokens, special ones not counted, that is left."""
        special = 2 * self.frame * len(batch)
        left = sum(int(tokens.valid.sum()) - special for tokens in made)
        whole = (int(self.plain(batch).valid.sum()) - special) * len(made)
        return {"tokens left": Share(left, whole, sum(view.crop) / 2 * (1 - view.drop))}

    def plain(self, batch: Batch) -> Tokens:
        """The texts between their special tokens, cut to `size`."""
        t, ids = self.tokenizer, batch.inputs["ids"]
        length = batch.inputs["length"].clamp_max(self.size - 2)
        longest = int(length.max()) if len(length) else 0
        b, device = len(ids), ids.device
        at = torch.arange(longest + 2, device=device)
        out = torch.full((b, longest + 2), t.pad, dtype=torch.int64, device=device)
        out[:, 1:-1] = torch.where(at[:longest] < length[:, None], ids[:, :longest], t.pad)
        out[:, 0] = t.first
        out.scatter_(1, (length + 1)[:, None], t.last)
        starts = torch.ones_like(out, dtype=torch.bool)
        starts[:, 1:-1] = batch.inputs["starts"][:, :longest]
        return Tokens(out, at < (length + 2)[:, None], starts)

    def inputs(self, samples: Sequence[str]) -> dict[str, Tensor]:
        """A batch's inputs from texts."""
        found = self.tokenizer.encode(list(samples))
        length = torch.tensor([len(x.ids) for x in found])
        ids = torch.zeros(len(found), int(length.max()) if len(found) else 0, dtype=torch.int64)
        starts = torch.zeros_like(ids, dtype=torch.bool)
        for row, x in enumerate(found):
            ids[row, : len(x.ids)] = torch.from_numpy(x.ids)
            starts[row, : len(x.ids)] = torch.from_numpy(x.starts)
        whole = {"document": torch.arange(len(found)), "edges": torch.ones(len(found), 2, dtype=torch.bool)}
        return {"ids": ids, "length": length, "starts": starts, **whole}

    def join(self, views: Sequence[Tokens]) -> Tokens:
        """Views one after the other, all as wide as the widest."""
        width, pad = max(v.ids.shape[1] for v in views), self.tokenizer.pad

        def joined(parts: list[Tensor], fill: int) -> Tensor:
            return torch.cat([F.pad(x, (0, width - x.shape[1]), value=fill) for x in parts])

        segments = [v.segments for v in views if v.segments is not None]
        return Tokens(
            joined([v.ids for v in views], pad),
            joined([v.valid for v in views], 0),
            joined([v.starts for v in views], 0),
            joined(segments, 0) if len(segments) == len(views) else None,
        )

    def maskable(self, tokens: Tokens) -> Tensor:
        """The tokens that may be hidden, bool [B, L]: real ones that are not special, wherever they stand."""
        t = self.tokenizer
        special = torch.tensor([t.first, t.last, t.pad, t.mask], device=tokens.ids.device)
        return tokens.valid & ~torch.isin(tokens.ids, special)

    def to_json(self) -> dict[str, object]:
        """Length, size of the vocabulary, and the segmenter where there is one; the tokenizer itself is a file (`files`)."""
        segmenter = self.tokenizer.segmenter
        words = {} if segmenter is None else {"words": segmenter.name}
        return {"length": self.size, "vocabulary": self.tokenizer.vocabulary, **words}

    def files(self) -> dict[str, str]:
        """What belongs beside `to_json`: the tokenizer."""
        return {TOKENIZER: self.tokenizer.dump()}

    @classmethod
    def from_json(cls, values: dict[str, object], files: dict[str, str]) -> TextModality:
        """The modality that `to_json` and `files` described; of which class, the reader of a bundle knows."""
        match {"words": "", **values}:
            case {"length": int(length), "vocabulary": int(vocabulary), "words": str(words), **rest} if (
                rest == ({"running": True} if cls.running else {}) and TOKENIZER in files
            ):
                tokenizer = Tokenizer.parse(files[TOKENIZER], TOKENIZER, words)
                if tokenizer.vocabulary != vocabulary:
                    raise UserError(f"{TOKENIZER} has {tokenizer.vocabulary} tokens, the encoder {vocabulary}")
                return cls(tokenizer, length)
        raise UserError(
            f"text preprocessing is {values}, but must hold length and vocabulary, with {TOKENIZER} beside it"
        )


def _closed_up(tokens: Tokens, stays: Tensor, pad: int) -> Tokens:
    """Only the tokens that stay, moved to the left."""
    order = (~stays).to(torch.uint8).argsort(dim=1, stable=True)
    count = stays.sum(1, keepdim=True)
    order = order[:, : int(count.max())]
    valid = torch.arange(order.shape[1], device=order.device) < count
    ids = tokens.ids.gather(1, order).masked_fill(~valid, pad)
    return Tokens(ids, valid, tokens.starts.gather(1, order))
