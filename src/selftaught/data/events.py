"""Event logs in memory: users, each with his events in the order of time."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selftaught.data.item_table import ItemFacts
from selftaught.data.source import Skipped, Source
from selftaught.errors import unknown


class EventSource(Source):
    """A sample is a user with a history. fetch gives "items" int64 [B, L], an item's id or 0 beyond a row's end; "length" int64
    [B]; and "scored" bool [B, L], which events are to be predicted, where a row is asked about some of them alone.

    names: raw ids of the users. items: raw ids of the items; an item's code is its position there, its id that plus 1.
    bounds: int64 [N, 2], where each user's events lie in the arrays. item: int32 [E], codes. time: float64 [E], seconds since
    1970 or the log's own numbers, or None. rating: float32 [E], NaN of an event without one, or None. limit: of a history, the
    last so many events are fetched; None: all. lengths: int64 [N]. left_out: bad rows of the file, of which `skipped` lists the
    first. about: what a table says of the items; None: there is no table.
    """

    kind = "event"

    def __init__(
        self,
        names: Sequence[str],
        items: Sequence[str],
        bounds: np.ndarray,
        item: np.ndarray,
        *,
        hashes: np.ndarray,
        time: np.ndarray | None = None,
        rating: np.ndarray | None = None,
        skipped: list[Skipped] | None = None,
        left_out: int = 0,
        limit: int | None = None,
        ids: np.ndarray | None = None,
        asked: np.ndarray | None = None,
        about: ItemFacts | None = None,
    ) -> None:
        self.names, self.items, self.bounds, self.item = names, items, bounds, item
        self.hashes, self.time, self.rating, self.skipped = hashes, time, rating, [] if skipped is None else skipped
        self.labels, self.classes, self.left_out = None, [], left_out
        self.limit, self._ids, self._asked, self.about = limit, ids, asked, about
        self.lengths = bounds[:, 1] - bounds[:, 0]

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def fingerprint(self) -> str:
        """That of the histories, and of what is known of the items."""
        if self.about is None:
            return self.log_hash
        return hashlib.blake2b((self.log_hash + self.about.digest).encode(), digest_size=16).hexdigest()

    @property
    def log_hash(self) -> str:
        """The fingerprint of the histories alone."""
        return super().fingerprint

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        begin, end = self.bounds[index].T
        if self.limit is not None:
            begin = np.maximum(begin, end - self.limit)
        at = begin[:, None] + np.arange((end - begin).max(initial=0))
        there = at < end[:, None]
        code = np.where(there, self.item[np.where(there, at, 0)], -1).astype(np.int64) if at.size else at
        ids = code + 1 if self._ids is None else np.where(there, self._ids[code], 0)
        asked = there if self._asked is None else there & (at >= end[:, None] - self._asked[index][:, None])
        if self._ids is not None and not (ids[there] > 0).all():  # items that have no id are left out
            order = np.argsort(ids == 0, axis=1, kind="stable")
            ids, asked = (np.take_along_axis(x, order, 1) for x in (ids, asked))
            there = ids > 0
            width = int(there.sum(1).max(initial=0))
            ids, asked, there = ids[:, :width], asked[:, :width] & there[:, :width], there[:, :width]
        found = {"items": torch.from_numpy(ids), "length": torch.from_numpy(there.sum(1))}
        return found if self._asked is None else {**found, "scored": torch.from_numpy(asked)}

    def places(self, users: Sequence[str]) -> np.ndarray:
        """Positions int64 of users by their raw ids; UserError for one that is not there."""
        place = {name: i for i, name in enumerate(self.names)}
        for name in users:
            if name not in place:
                raise unknown("user", name, place)
        return np.array([place[name] for name in users], np.int64)

    def subset(self, index: np.ndarray) -> "EventSource":
        index = np.arange(len(self))[index]
        return self._of(self.bounds[index], index)

    def cut(self, bounds: np.ndarray, users: np.ndarray | None = None) -> "EventSource":
        """The same log by other ranges of events, int64 [M, 2], and whose they are, int64 [M]; None: as before."""
        return self._of(bounds, np.arange(len(self)) if users is None else users)

    def renamed(self, ids: np.ndarray) -> "EventSource":
        """The log with other ids, int64 [number of items]; events with an item whose id is 0 are left out as they are
        fetched."""
        found = self._of(self.bounds, np.arange(len(self)))
        found._ids = ids
        return found

    def asking(self, count: np.ndarray) -> "EventSource":
        """Rows that are asked about their last events alone: so many of each, int64 [N]; 0: about all."""
        found = self._of(self.bounds, np.arange(len(self)))
        found._asked = np.where(count > 0, count, self.lengths)
        return found

    def _of(self, bounds: np.ndarray, users: np.ndarray) -> "EventSource":
        return EventSource(
            _Chosen(self.names, users),
            self.items,
            bounds,
            self.item,
            hashes=self.hashes[users],
            time=self.time,
            rating=self.rating,
            skipped=self.skipped,
            left_out=self.left_out,
            limit=self.limit,
            ids=self._ids,
            asked=None if self._asked is None else self._asked[users],
            about=self.about,
        )


class _Chosen(Sequence[str]):
    """Some of the names, looked up when asked for."""

    def __init__(self, names: Sequence[str], index: np.ndarray) -> None:
        self._names, self._index = names, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]
        return self._names[int(self._index[i])]
