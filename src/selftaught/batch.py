"""The only things that flow: Batch (decoded samples), Encoded (what an encoder returns), Step (what a task returns), and
Shown (what a task lets people see of a batch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught import rng


@dataclass(frozen=True)
class Batch:
    """Decoded samples, not yet augmented, and the keys of their randomness.

    inputs: tensors of one kind of data, first dimension B. Images: `pixels` uint8 [B, C, H, W], each picture in the
        upper left corner of a canvas, and `size` int64 [B, 2], its true height and width. Text: `ids` int64 [B, L],
        `length` int64 [B], `starts` bool [B, L] and `document` int64 [B] (see `TextModality`).
    index: int64 [B], each sample's position in its source: its identity, whatever batch it comes in.
    seed, step: with `index`, the key of every random draw made for this batch.
    labels: int64 [B] or None; -1 where unknown. Only supervised tasks may read it.
    """

    inputs: dict[str, Tensor]
    index: Tensor
    seed: int
    step: int
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device (asynchronously where its memory is pinned)."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory that a CUDA device copies from by itself."""
        return self._each(Tensor.pin_memory)

    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [*self.inputs.values(), self.index, *([] if self.labels is None else [self.labels])]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            inputs={name: change(x) for name, x in self.inputs.items()},
            index=change(self.index),
            labels=None if self.labels is None else change(self.labels),
        )

    def uniform(self, stream: int, n: int) -> Tensor:
        """Uniform float32 [B, n] in [0, 1): row i is a function of (seed, step, stream, index[i]) alone.

        `stream` names the purpose (first view, second view, mask ...), so that two purposes never share draws.
        """
        return rng.uniform(rng.fold(self.seed, self.step, stream), self.index, n)


class Tokens(NamedTuple):
    """What an encoder of text reads: ids int64 [B, L]; valid bool [B, L], real tokens, the first of each row; starts bool
    [B, L], which of them begin a word; segments int64 [B, L], 0 or 1: which of two texts a token is of, or None where
    there is one text only."""

    ids: Tensor
    valid: Tensor
    starts: Tensor
    segments: Tensor | None = None


class Encoded(NamedTuple):
    """tokens [B, N, D]; pooled [B, D]; valid bool [B, N], or None where every token is real."""

    tokens: Tensor
    pooled: Tensor
    valid: Tensor | None = None


class Step(NamedTuple):
    """loss: 0-d with gradient; metrics: detached 0-d tensors by name, for the log."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Seen(NamedTuple):
    """Something that is read of each sample. name: what it is, or what reads it. read: `Tokens`, or pictures [B, C, H, W]
    normalised. Of texts in which tokens are hidden also truth, the texts before, and chosen bool [B, L], which they are."""

    name: str
    read: Any
    truth: Tokens | None = None
    chosen: Tensor | None = None


class Share(NamedTuple):
    """How often something was drawn: `part` of `whole`. asked: the share that the settings say; None: they say none."""

    part: float
    whole: float
    asked: float | None = None


class Answers(NamedTuple):
    """What a task said of some questions. names: of the answers there are. right, said: int64 [n], indices of names. guess: how
    often a guess is right; None: one time of as many as there are answers."""

    names: tuple[str, ...]
    right: Tensor
    said: Tensor
    guess: float | None = None


class Shown(NamedTuple):
    """What a task makes of a batch. seen: what is read. shares: by name. answers: what is to be told of each sample, in
    words; none where that is not one thing."""

    seen: tuple[Seen, ...]
    shares: dict[str, Share]
    answers: tuple[str, ...] = ()
