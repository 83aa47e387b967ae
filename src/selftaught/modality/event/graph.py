"""Who had what, as a graph between histories and items."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Graph(NamedTuple):
    """Edges, each once, sorted by history: history int64 [E], below `histories`; item int64 [E], ids 1 to `items`."""

    history: Tensor
    item: Tensor
    histories: int
    items: int

    @classmethod
    def of(cls, history: Tensor, item: Tensor, histories: int, items: int) -> Graph:
        """The graph of events int64 [N]; several of a history with one item are one edge, and id 0 is no item."""
        edge = (history * (items + 1) + item)[item > 0].unique()
        return cls(edge // (items + 1), edge % (items + 1), histories, items)

    def without(self, dropped: Tensor) -> Graph:
        """The graph without some edges, bool [E]."""
        return self._replace(history=self.history[~dropped], item=self.item[~dropped])

    def to(self, device: torch.device) -> Graph:
        """The same graph on a device."""
        return self._replace(history=self.history.to(device), item=self.item.to(device))
