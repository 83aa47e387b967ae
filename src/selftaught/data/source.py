"""What every kind of data looks like to the rest: an indexed collection of decoded samples with content hashes."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught import rng
from selftaught.errors import UserError

_HOLDOUT_STREAM = 0x486F6C64  # "Hold": keeps the split apart from every other use of the same seed


class Skipped(NamedTuple):
    """A sample that was left out: its name (path or archive member) and why."""

    name: str
    reason: str


class Picked(Sequence[str]):
    """Some entries of a sequence of names, looked up when asked for."""

    def __init__(self, names: Sequence[str], rows: np.ndarray) -> None:
        self._names, self._rows = names, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Picked(self._names, self._rows[index])
        return self._names[self._rows[index]]


class Source(ABC):
    """N samples of one kind, reached by position 0..N-1; positions and content stay the same while it is open.

    kind: what the samples are ("image").
    labels: int64 [N], -1 where unknown, or None where the data has none. `classes[label]` is a label's name.
    names: each sample's path (relative to the data's root) or archive member.
    hashes: uint64 [N], a hash of each sample's content: the file's bytes, or the pixels where there is no file.
    skipped: samples left out, with reasons.
    """

    kind: str
    labels: np.ndarray | None
    classes: list[str]
    names: Sequence[str]
    hashes: np.ndarray
    skipped: list[Skipped]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        """The decoded samples at int64 positions `index` [B], as a Batch's `inputs` (first dimension B)."""

    @abstractmethod
    def subset(self, index: np.ndarray) -> "Source":
        """The samples at positions `index`, in that order, as a source of their own; nothing is copied."""

    def actual(self, index: np.ndarray) -> np.ndarray:
        """The positions whose content `fetch` gave for `index`: others where a sample can no longer be read."""
        return index

    def readable(self, index: np.ndarray) -> np.ndarray:
        """bool [B]: which samples `fetch` gave as they are, rather than another in their place."""
        return self.actual(index) == index

    @property
    def fingerprint(self) -> str:
        """The data hash, 32 hexadecimal digits: a function of the samples' hashes and labels, in order."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.ascontiguousarray(self.hashes, dtype="<u8").tobytes())
        if self.labels is not None:
            digest.update(b"labels" + np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        return digest.hexdigest()


def content_hash(data: bytes | memoryview) -> int:
    """64-bit hash of a sample's content (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def holdout(source: Source, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split into (train, held-out) positions, int64, both ascending; about `share` of the samples are held out.

    A sample's side is a function of its content hash and the seed alone: exact duplicates fall on the same side, and
    adding or removing other samples moves none.

    Raises UserError where `share` is not in (0, 1) or a side would be empty.
    """
    if not 0 < share < 1:
        raise UserError(f"hold-out share {share:g} is not between 0 and 1; use for example 0.1")
    key = rng.fold(seed, _HOLDOUT_STREAM)
    held = rng.uniform(key, torch.from_numpy(source.hashes.view(np.int64)), 1)[:, 0].numpy() < share
    if held.all() or not held.any():
        side = "all" if held.all() else "none"
        raise UserError(
            f"a hold-out share of {share:g} takes {side} of these {len(held)} samples; "
            "use another share, more data or a hold-out set of your own"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)
