"""Which tokens a masked language model has to guess, and what it is shown in their place."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selftaught.batch import Batch, Share, Tokens
from selftaught.errors import UserError
from selftaught.modality.text import TextModality

_CHOICE, _SHOWN, _RANDOM = 1, 2, 3  # streams of randomness


@dataclass(frozen=True)
class Masking:
    """mask: share of a sequence's tokens, special ones counted, that is hidden: max(1, round(mask * length)).
    keep, random: of those, the shares shown as they are and replaced by any token; the rest becomes [MASK].
    words: hide whole words.
    """

    mask: float = 0.15
    keep: float = 0.1
    random: float = 0.1
    words: bool = False

    def __post_init__(self) -> None:
        for name, value in (("mask", self.mask), ("keep + random", self.keep + self.random)):
            if not 0 <= value <= 1 or (name == "mask" and value == 0):
                raise UserError(f"pretext.{name} is {value:g}, but must be a share between 0 and 1")


class Hidden(NamedTuple):
    """shown: what is left of the texts; chosen bool [B, L]: the tokens to be guessed."""

    shown: Tokens
    chosen: Tensor


def hide(modality: TextModality, text: Tokens, batch: Batch, masking: Masking) -> Hidden:
    """Hide tokens of the texts; a function of (seed, step, sample)."""
    tokenizer, width = modality.tokenizer, text.ids.shape[1]
    starts = text.starts if masking.words else torch.ones_like(text.starts)
    count = how_many(text.valid, masking.mask)
    chosen = choose(modality.maskable(text), starts, count, batch.uniform(_CHOICE, width))
    ids = corrupt(
        *(text.ids, chosen, batch.uniform(_SHOWN, width), batch.uniform(_RANDOM, width)),
        mask=tokenizer.mask,
        vocabulary=tokenizer.vocabulary,
        keep=masking.keep,
        random=masking.random,
    )
    return Hidden(text._replace(ids=ids), chosen)


def how_many(valid: Bool[Tensor, "b l"], share: float) -> Int[Tensor, " b"]:
    """How many tokens of each row are guessed: max(1, round(share * its length)), special tokens counted, as BERT does."""
    return (valid.sum(1).double() * share).round().long().clamp_min(1)


def choose(
    maskable: Bool[Tensor, "b l"], starts: Bool[Tensor, "b l"], count: Int[Tensor, " b"], scores: Float[Tensor, "b l"]
) -> Bool[Tensor, "b l"]:
    """`count` tokens of each row at random, as whole words: bool [B, L].

    maskable: tokens that may be chosen (no special ones). starts: those that begin a word; all true: single tokens.
    scores: uniform random numbers; a word's is that of its first token.

    Words are taken in the order of their scores; one that would exceed the count is passed over, and the next one tried
    (google-research/bert, create_pretraining_data.py). Where all words are single tokens the count is exact.
    """
    b, length = maskable.shape
    if bool((starts | ~maskable).all()):
        rank = scores.masked_fill(~maskable, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
        return (rank < count[:, None]) & maskable
    word = _words(maskable, starts)
    sizes = torch.zeros_like(word).scatter_add_(1, word, maskable.long())
    first = torch.full((b, length), 2.0, device=word.device)
    first.scatter_reduce_(1, word, scores.masked_fill(~(starts & maskable), 2.0), "amin")
    order = first.masked_fill(sizes == 0, 3.0).argsort(dim=1, stable=True)
    left, taken = count.clone(), torch.zeros(b, length, dtype=torch.bool, device=word.device)
    for column in order[:, : int((sizes > 0).sum(1).max())].unbind(1):
        size = sizes.gather(1, column[:, None])[:, 0]
        fits = (size > 0) & (size <= left)
        left -= size * fits
        taken.scatter_(1, column[:, None], fits[:, None])
    return taken.gather(1, word) & maskable


def _words(maskable: Bool[Tensor, "b l"], starts: Bool[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """The word of each token, counted from 0 in its row; the tokens of a word before the first start belong to word 0."""
    return ((starts & maskable).long().cumsum(1) - 1).clamp_min(0)


def corrupt(
    ids: Int[Tensor, "b l"],
    chosen: Bool[Tensor, "b l"],
    u: Float[Tensor, "b l"],
    other: Float[Tensor, "b l"],
    *,
    mask: int,
    vocabulary: int,
    keep: float,
    random: float,
) -> Int[Tensor, "b l"]:
    """The ids with each chosen token drawn by itself: left as it is (`keep`), any token (`random`), else the mask token.

    u, other: uniform random numbers, for the choice and for the token, which is any of the whole vocabulary.
    """
    drawn = (other * vocabulary).long().clamp_max(vocabulary - 1)
    shown = torch.where(u < keep + random, torch.where(u < keep, ids, drawn), torch.full_like(ids, mask))
    return torch.where(chosen, shown, ids)


def fates(modality: TextModality, text: Tokens, hidden: Hidden) -> dict[str, Bool[Tensor, "b l"]]:
    """What became of the hidden tokens, bool [B, L] each: "masked", "kept" and "random". A token that was replaced by itself,
    once in as many draws as the vocabulary has tokens, counts as kept."""
    shown, chosen = hidden
    masked = chosen & (shown.ids == modality.tokenizer.mask)
    kept = chosen & (shown.ids == text.ids)
    return {"masked": masked, "kept": kept, "random": chosen & ~masked & ~kept}


def shares(modality: TextModality, text: Tokens, hidden: Hidden, masking: Masking) -> dict[str, Share]:
    """How much was hidden and in which way, and how many of the words that were touched were hidden whole."""
    found, n = fates(modality, text, hidden), int(hidden.chosen.sum())
    maskable = modality.maskable(text)
    word = _words(maskable, text.starts)
    size, gone = (torch.zeros_like(word).scatter_add_(1, word, x.long()) for x in (maskable, hidden.chosen))
    return {
        "tokens hidden": Share(n, int(text.valid.sum()), masking.mask),
        "hidden ones: [MASK]": Share(int(found["masked"].sum()), n, 1 - masking.keep - masking.random),
        "hidden ones: any token": Share(int(found["random"].sum()), n, masking.random),
        "hidden ones: as they were": Share(int(found["kept"].sum()), n, masking.keep),
        "touched words hidden whole": Share(
            int(((gone == size) & (gone > 0)).sum()), int((gone > 0).sum()), 1.0 if masking.words else None
        ),
    }
