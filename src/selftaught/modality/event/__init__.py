"""Events: a user's history as a row of item ids, whole, cut, masked or reordered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.batch import Batch, Share, Tokens
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.modality.event.attributes import Attributes
from selftaught.modality.event.graph import Graph

__all__ = ["Attributes", "EventModality", "EventView", "Graph"]

ITEMS = "items.jsonl"
PAD = 0
LEAST = 2
_PAIR = 44  # stream of randomness


@dataclass(frozen=True)
class EventView:
    """A random view of a history: one of the operations that are not None, each as likely.

    crop: share of the events that is kept, one run of them. mask: share that is hidden. reorder: share, one run, that is shuffled
    (Xie et al. 2022, "Contrastive Learning for Sequential Recommendation", section 3.2; their best for several data sets).
    """

    crop: float | None = 0.6
    mask: float | None = 0.3
    reorder: float | None = 0.6

    def __post_init__(self) -> None:
        for name in ("crop", "mask", "reorder"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"view.{name} is {value:g}, but must be a share above 0 and up to 1, or null")


class Follows(NamedTuple):
    """before: histories without their last event. target: int64 [B, L], the item after each event of them. asked: bool [B, L],
    which of these are to be predicted."""

    before: Tokens
    target: Tensor
    asked: Tensor


class EventModality(Modality):
    """Histories of at most `length` events. Ids: 0 is no event, 1 to V the items in the order of `items`, V + 1 the mask.

    protocol: which events of a log may teach, as JSON values (see data.protocols); it is kept here because nobody else may
    know an encoder's past. words: the run whose encoder reads the words of items, or None. A batch's inputs are `items` int64
    [B, L], ids, 0 beyond a row's end; `length` int64 [B]; and, where only some events are to be predicted, `scored` bool [B, L].

    While an encoder is pretrained there is also graph: makes the graph of who had what in the events that teach, in which the
    sample at position i of what teaches is the i-th history; features: makes what is known of each id, float32 [V + 2, F];
    attributes: makes which attributes each id has, None where nothing says so.
    """

    name = "event"

    def __init__(self, items: Sequence[str], length: int, protocol: dict[str, Any], words: str | None = None) -> None:
        if length < LEAST:
            raise UserError(f"length {length} is below {LEAST} events; use --size {LEAST} or more")
        self.items, self.size, self.protocol, self.words = items, length, protocol, words
        self.graph: Callable[[], Graph] | None = None
        self.features: Callable[[], Tensor] | None = None
        self.attributes: Callable[[], Attributes | None] | None = None
        self._place: dict[str, int] | None = None

    @property
    def mask(self) -> int:
        return len(self.items) + 1

    @property
    def vocabulary(self) -> int:
        """Ids there are, the mask and the one for no event included."""
        return len(self.items) + 2

    def ids(self, raw: Sequence[str]) -> np.ndarray:
        """Ids int64 of raw ids; 0 for what is not in the catalogue."""
        if raw is self.items:
            return np.arange(1, len(raw) + 1)
        if self._place is None:
            self._place = {item: i for i, item in enumerate(self.items, 1)}
        return np.fromiter((self._place.get(x, PAD) for x in raw), np.int64, len(raw))

    def follows(self, batch: Batch) -> Follows:
        """The last `size` + 1 events of each row: what `size` events are read of, and what comes after each of them."""
        x = last(self._whole(batch), self.size + 1)
        asked = x.valid
        if "scored" in batch.inputs:
            count, length = batch.inputs["scored"].sum(1, keepdim=True), x.valid.sum(1, keepdim=True)
            asked = asked & (torch.arange(x.ids.shape[1], device=x.ids.device) >= length - count)
        there = x.valid[:, 1:]
        return Follows(Tokens(x.ids[:, :-1].masked_fill(~there, PAD), there, there), x.ids[:, 1:], asked[:, 1:])

    def given(self, batch: Batch) -> tuple[Tokens, Tensor]:
        """The last `size` events of each row as a set: what is known of it, and which events are to be told from that, bool
        [B, L]. Where a row is asked about some events alone, the others are known; else all are both."""
        x = self.plain(batch)
        if "scored" not in batch.inputs:
            return x, x.valid
        count, length = batch.inputs["scored"].sum(1, keepdim=True), batch.inputs["length"][:, None]
        at = torch.arange(x.ids.shape[1], device=x.ids.device)
        asked = x.valid & (at >= x.valid.sum(1, keepdim=True) - count)
        known = x.valid & (~asked | (count == length))
        return x._replace(valid=known), asked

    def _whole(self, batch: Batch) -> Tokens:
        ids = batch.inputs["items"]
        valid = torch.arange(ids.shape[1], device=ids.device) < batch.inputs["length"][:, None]
        return Tokens(ids, valid, valid)

    def plain(self, batch: Batch) -> Tokens:
        """The last `size` events of each row."""
        return last(self._whole(batch), self.size)

    def contrastive_view(self) -> EventView:
        return EventView()

    def light_view(self) -> EventView:
        """A long run of the events."""
        return EventView(crop=0.9, mask=None, reorder=None)

    def view(self, batch: Batch, view: EventView, stream: int) -> Tokens:
        """One random view of each history; a function of (seed, step, stream, sample)."""
        made = self._made(batch, view, stream)
        return _picked(made, _which(batch.uniform(stream, 1)[:, 0], len(made))) if made else self.plain(batch)

    def pair(self, batch: Batch, view: EventView) -> tuple[Tokens, Tokens]:
        """Two views of each history, by two different operations where `view` has several."""
        first, second = self._made(batch, view, 1), self._made(batch, view, 2)
        if not first:
            return self.plain(batch), self.plain(batch)
        u, n = batch.uniform(_PAIR, 2), len(first)
        one = _which(u[:, 0], n)
        other = (one + 1 + _which(u[:, 1], n - 1)) % n if n > 1 else one
        return _picked(first, one), _picked(second, other)

    def _made(self, batch: Batch, view: EventView, stream: int) -> list[Tokens]:
        """Each history after each of the operations, all as wide."""
        x = self.plain(batch)
        width, length = x.ids.shape[1], x.valid.sum(1)
        u = batch.uniform(stream, 2 + width)
        made, run = [], u[:, 1]
        if view.crop is not None:
            made.append(_closed_up(x, _run(run, length, view.crop, width)))
        if view.mask is not None:
            count = (length * view.mask).floor().clamp_min(1)
            rank = u[:, 2:].masked_fill(~x.valid, 2.0).argsort(1).argsort(1)
            made.append(x._replace(ids=x.ids.masked_fill(x.valid & (rank < count[:, None]), self.mask)))
        if view.reorder is not None:
            inside = _run(run, length, view.reorder, width)
            at = torch.arange(width, device=x.ids.device).expand_as(x.ids)
            # Inside the run the places are in the order of the draws, elsewhere as they were.
            start = at.masked_fill(~inside, width).amin(1, keepdim=True)
            key = torch.where(inside, start + u[:, 2:] * 0.5, at.float() + (at > start) * 0.75)
            made.append(x._replace(ids=x.ids.gather(1, key.argsort(dim=1, stable=True))))
        return made

    def shares(self, batch: Batch, view: EventView, made: Sequence[Tokens]) -> dict[str, Share]:
        """The share of the events that is left, and that is hidden."""
        whole = int(self.plain(batch).valid.sum()) * len(made)
        hidden = sum(int((m.ids == self.mask).sum()) for m in made)
        return {
            "events left": Share(sum(int(m.valid.sum()) for m in made), whole),
            "events hidden": Share(hidden, whole),
        }

    def inputs(self, samples: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """A batch's inputs from histories of raw ids; items that are not in the catalogue are left out."""
        rows = [found[found > 0] for found in map(self.ids, samples)]
        ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.from_numpy(row)
        return {"items": ids, "length": torch.tensor([len(row) for row in rows])}

    def join(self, views: Sequence[Tokens]) -> Tokens:
        """Views one after the other, all as wide as the widest."""
        wide = _wide(views, max(v.ids.shape[1] for v in views))
        valid = torch.cat([v.valid for v in wide])
        return Tokens(torch.cat([v.ids for v in wide]), valid, valid)

    def to_json(self) -> dict[str, object]:
        """Length, protocol and size of the catalogue; the catalogue itself is a file."""
        found: dict[str, object] = {"length": self.size, "items": len(self.items), "protocol": self.protocol}
        return found if self.words is None else {**found, "words": self.words}

    def files(self) -> dict[str, str]:
        """The catalogue: a JSON string a line, so that any id survives."""
        return {ITEMS: "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in self.items)}

    @classmethod
    def from_json(cls, values: dict[str, object], files: dict[str, str]) -> EventModality:
        """The modality that `to_json` and `files` described."""
        match values:
            case {"length": int(length), "items": int(count), "protocol": dict(protocol), **rest} if (
                rest.keys() <= {"words"} and ITEMS in files
            ):
                try:
                    items = [json.loads(line) for line in files[ITEMS].split("\n") if line]
                except ValueError as error:
                    raise UserError(f"{ITEMS} is damaged: {error}") from None
                if len(items) != count or not all(isinstance(x, str) for x in items):
                    raise UserError(f"{ITEMS} holds {len(items)} items, and {count} belong to the encoder")
                return cls(items, length, protocol, None if "words" not in rest else str(rest["words"]))
        raise UserError(
            f"event preprocessing is {values}, but must hold length, items and protocol, with {ITEMS} beside it"
        )


def last(x: Tokens, size: int) -> Tokens:
    """The last `size` events of each row, again from its start."""
    if x.ids.shape[1] <= size:
        return x
    length = x.valid.sum(1, keepdim=True)
    at = torch.arange(size, device=x.ids.device)
    place = (length - size).clamp_min(0) + at
    valid = at < length.clamp_max(size)
    ids = x.ids.gather(1, place.clamp_max(x.ids.shape[1] - 1)).masked_fill(~valid, PAD)
    return Tokens(ids, valid, valid)


def _run(u: Tensor, length: Tensor, share: float, width: int) -> Tensor:
    """One run of a share of each row's events, at least one, beginning anywhere: bool [B, L]."""
    count = (length * share).floor().clamp_min(1).minimum(length)
    begin = (u * (length - count + 1)).floor()
    at = torch.arange(width, device=u.device)
    return (at >= begin[:, None]) & (at < (begin + count)[:, None])


def _closed_up(x: Tokens, stays: Tensor) -> Tokens:
    order = (~stays).to(torch.uint8).argsort(dim=1, stable=True)
    valid = torch.arange(x.ids.shape[1], device=x.ids.device) < stays.sum(1, keepdim=True)
    return Tokens(x.ids.gather(1, order).masked_fill(~valid, PAD), valid, valid)


def _which(u: Tensor, n: int) -> Tensor:
    """Whole numbers below n from uniform ones."""
    return (u * n).long().clamp_max(n - 1)


def _picked(made: Sequence[Tokens], which: Tensor) -> Tokens:
    """Of each row that one of several views, all as wide, whose number `which` tells, int64 [B]."""
    row = torch.arange(len(which), device=which.device)
    ids = torch.stack([m.ids for m in made])[which, row]
    valid = torch.stack([m.valid for m in made])[which, row]
    return Tokens(ids, valid, valid)


def _wide(views: Sequence[Tokens], width: int) -> list[Tokens]:
    padded = [(F.pad(v.ids, (0, width - v.ids.shape[1])), F.pad(v.valid, (0, width - v.ids.shape[1]))) for v in views]
    return [Tokens(ids, valid, valid) for ids, valid in padded]
