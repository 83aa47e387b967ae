"""Copies within a set and between two: what every kind of data shares once its near duplicates are found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from selftaught.data.source import Source

LISTED = 100  # groups and leaks that are named; all are counted
_PAIRS = 2**22  # pairs handed out at a time


@dataclass(frozen=True)
class Leak:
    """A sample of the audited data that also lies, exactly or nearly, in the other data."""

    name: str
    other: str
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What an audit says of another source: how many samples it has, and how many of the audited data are also there.

    other_samples: None where no other source was searched. leaks: the first 100 exact ones, and the first 100 near ones.
    """

    other_samples: int | None = None
    leak_exact: int = 0
    leak_near: int = 0
    leaks: tuple[Leak, ...] = ()


def equal_groups(hashes: np.ndarray) -> list[list[int]]:
    """Positions that share a content hash, two and more of them; by their first member."""
    order = np.argsort(hashes, kind="stable")
    cuts = np.flatnonzero(np.diff(hashes[order])) + 1
    return sorted(group.tolist() for group in np.split(order, cuts) if len(group) > 1)


def parts(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The number of the connected part that each of n samples belongs to, [n], from pairs (i, j)."""
    return connected_components(coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n)), directed=False)[1]


def groups(n: int, i: np.ndarray, j: np.ndarray) -> list[list[int]]:
    """Connected groups of 2 and more among n samples, from pairs (i, j); by their first member."""
    part = parts(n, i, j)
    member = np.flatnonzero(np.bincount(part)[part] > 1)
    order = member[np.argsort(part[member], kind="stable")]
    cuts = np.flatnonzero(np.diff(part[order])) + 1
    return sorted(group.tolist() for group in np.split(order, cuts) if len(group))


def bucket_pairs(bounds: np.ndarray, window: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of positions p < q within each range bounds[k] .. bounds[k+1], many ranges at a time, memory bounded.

    window: only those with q - p of at most this, so that a long range takes no quadratic time.
    """
    sizes = np.diff(bounds)
    position = np.arange(bounds[-1])
    partners = np.repeat(bounds[1:], sizes) - position - 1  # position p is paired with p+1 .. its range's end
    if window is not None:
        partners = np.minimum(partners, window)
    start = 0
    total = np.concatenate([[0], np.cumsum(partners)])
    while start < len(position):
        stop = max(start + 1, int(np.searchsorted(total, total[start] + _PAIRS, side="right")) - 1)
        count = partners[start:stop]
        left = np.repeat(position[start:stop], count)
        step = np.arange(len(left)) - np.repeat(total[start:stop] - total[start], count)
        yield left, left + 1 + step
        start = stop


def class_counts(source: Source) -> dict[str, int]:
    """Samples by class; empty where there are no labels."""
    if source.labels is None:
        return {}
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.classes))
    return {name: int(count) for name, count in zip(source.classes, counts)}


def named(source: Source, found: list[list[int]]) -> list[list[str]]:
    """The first groups by the names of their first members."""
    return [[source.names[i] for i in group[:LISTED]] for group in found[:LISTED]]


def leaks(source: Source, other: Source, near: Mapping[int, int]) -> dict[str, Any]:
    """An audit's fields on samples of `source` that are also in `other`: by equal content hash, else by `near`, which
    gives a position in `other` for one in `source`."""
    where = {int(h): k for k, h in reversed(list(enumerate(other.hashes)))}
    same = {k: where[int(h)] for k, h in enumerate(source.hashes) if int(h) in where}
    rest = {k: v for k, v in near.items() if k not in same}
    found = [Leak(source.names[k], other.names[v], True) for k, v in sorted(same.items())[:LISTED]]
    found += [Leak(source.names[k], other.names[v], False) for k, v in sorted(rest.items())[:LISTED]]
    return {"other_samples": len(other), "leak_exact": len(same), "leak_near": len(rest), "leaks": tuple(found)}
