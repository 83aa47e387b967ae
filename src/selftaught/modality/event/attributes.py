"""Which attributes items have."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Attributes(NamedTuple):
    """attribute: int64 [A], those of each id one after the other. begins: int64 [V + 3], where those of an id begin. total: how
    many attributes there are."""

    attribute: Tensor
    begins: Tensor
    total: int

    @classmethod
    def of(cls, ids: Tensor, attribute: Tensor, vocabulary: int, total: int) -> Attributes:
        """From pairs int64 [A] of an id, 1 or more, and one of its attributes."""
        order = ids.argsort(stable=True)
        each = torch.bincount(ids, minlength=vocabulary)
        return cls(attribute[order], torch.cat([each.new_zeros(1), each.cumsum(0)]), total)

    def to(self, device: torch.device) -> Attributes:
        """The same on a device."""
        return self._replace(attribute=self.attribute.to(device), begins=self.begins.to(device))

    def hot(self, ids: Tensor) -> Tensor:
        """Of ids int64 [n] whether each has each attribute, float32 [n, total]."""
        begin, counts = self.begins[ids], self.begins[ids + 1] - self.begins[ids]
        row = torch.arange(len(ids), device=ids.device).repeat_interleave(counts)
        within = torch.arange(len(row), device=ids.device) - (counts.cumsum(0) - counts)[row]
        found = torch.zeros(len(ids), self.total, device=ids.device)
        found[row, self.attribute[begin[row] + within]] = 1.0
        return found
