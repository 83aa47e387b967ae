"""What the verbs ask of each kind of data: how it is opened, fitted, read, compared and shown."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.batch import Shown
from selftaught.data import Source, holdout
from selftaught.data.copies import Leaks
from selftaught.encoders import EncoderConfig
from selftaught.modality.base import Modality
from selftaught.modality.text.spans import Span


class Training(NamedTuple):
    """What pretraining reads: a source, and the positions in it that teach and that are held out."""

    source: Source
    train: np.ndarray
    held: np.ndarray


class Reading(NamedTuple):
    """Samples as evaluation reads them: positions in a source, and of which sample each is a part (None: each is whole)."""

    source: Source
    rows: np.ndarray
    owner: np.ndarray | None = None

    def joined(self, features: Tensor, samples: int) -> Tensor:
        """Features of the samples: the mean over the parts of each."""
        if self.owner is None:
            return features
        owner = torch.from_numpy(self.owner)
        total = features.new_zeros(samples, features.shape[1]).index_add_(0, owner, features)
        return total / torch.bincount(owner, minlength=samples)[:, None]


class Audited(NamedTuple):
    """What is in the data: as JSON values, what it offers to pretext tasks, and lines (name, words) for people."""

    values: dict[str, Any]
    offers: dict[str, tuple[bool, str]]
    lines: list[tuple[str, str]]


class Data(ABC):
    """One kind of data, as inspect and evaluate see it.

    name: as in `Source.kind`. noun: what a sample is called, in the plural. evaluation: the module of `workflow` whose
    `evaluate` measures an encoder on it.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    evaluation: ClassVar[str]

    @abstractmethod
    def audit(self, source: Any, other: Any, quiet: bool) -> Audited:
        """Look at the data before any training; other: a second source to search for leaks, or None."""


class Kind(Data):
    """One kind of data that encoders learn from.

    unit: of `--size`. default_pretext: what `pretrain` does where nothing is said. largest_batch: by device. unlabelled: how
    labels could be given. raw_is: what the baseline called raw is made of.
    """

    evaluation = "evaluate"
    unit: ClassVar[str]
    largest_batch: ClassVar[dict[str, int]]
    unlabelled: ClassVar[str]
    raw_is: ClassVar[str]
    default_pretext: ClassVar[str] = "simclr"

    def split(self, source: Any, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the samples that teach and of those that are held out."""
        return holdout(source, share)

    @abstractmethod
    def pick_size(self, source: Any, device: str, needs: frozenset[str]) -> int:
        """Training size for the data and the machine."""

    @abstractmethod
    def fit(self, source: Any, size: int, train: np.ndarray, settings: dict[str, Any], encoder: str) -> Modality:
        """Preprocessing, from the training samples alone, or as the named encoder needs it.

        settings: what `--set NAME.field` says of this kind.
        """

    @abstractmethod
    def choose(self, size: int, device: str, needs: frozenset[str]) -> str:
        """The automatic encoder."""

    @abstractmethod
    def encoder(self, name: str, size: int, source: Any, modality: Any) -> EncoderConfig:
        """The config of an encoder as users name it."""

    def fill(self, encoder: Any, modality: Any) -> None:  # most encoders need nothing
        """Give a fresh encoder what it is to know of the data before it learns."""

    @abstractmethod
    def base_lr(self, device: str, needs: frozenset[str], encoder: EncoderConfig) -> float:
        """The peak learning rate for a batch of 256; it goes with the square root of the batch."""

    @abstractmethod
    def training(self, source: Any, modality: Any, train: np.ndarray, held: np.ndarray, quiet: bool) -> Training:
        """What pretraining reads of the samples."""

    @abstractmethod
    def whole(self, source: Any, modality: Any, quiet: bool) -> Source:
        """The same samples, in the same order, as batches can be made of: a long text by its beginning."""

    def cut_short(self, whole: Any, modality: Any) -> int:  # most kinds are read whole
        """How many samples of `whole` are read by their beginning alone."""
        return 0

    @abstractmethod
    def reading(self, source: Any, modality: Any, index: np.ndarray, quiet: bool) -> Reading:
        """The samples at `index` as evaluation reads them."""

    @abstractmethod
    def raw(self, modality: Any, train: tuple[Any, np.ndarray], test: tuple[Any, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Features of (source, positions) that need no training: the baseline called raw."""

    @abstractmethod
    def facts(self, source: Any) -> dict[str, Any]:
        """What data.json says of a source beside its counts."""

    @abstractmethod
    def thumbnails(self, source: Any, index: np.ndarray) -> np.ndarray | None:
        """Small pictures uint8 [n, C, h, w] of the samples, for the map; None where they cannot be pictured."""

    def texts(self, modality: Any, shown: Shown, rows: int) -> list[list[tuple[str, list[Span]]]]:
        """What a task reads of the first rows of a batch, as texts (name, spans); none where it reads no text."""
        return [[] for _ in range(rows)]

    def grid(self, modality: Any, shown: Shown, rows: int) -> np.ndarray | None:
        """What it reads of them as one picture uint8 [C, h, w], a row each; None where it cannot be pictured."""
        return None


def counted(classes: dict[str, int], unlabelled: int, noun: str) -> str:
    """The classes of a data set in words."""
    if not classes:
        return "none (no class folders, no label column)"
    counts = sorted(classes.values())
    return f"{len(counts)}, of {counts[0]} to {counts[-1]} {noun}; {unlabelled} unlabelled"


def leaked(found: Leaks) -> list[tuple[str, str]]:
    """What an audit found of one data set in another, in lines; none where no other was searched."""
    if found.other_samples is None:
        return []
    shown = [("", f"{leak.name} {'=' if leak.exact else '~'} {leak.other}") for leak in found.leaks[:3]]
    return [("leakage", f"{found.leak_exact} exact and {found.leak_near} near copies in the other set"), *shown]
