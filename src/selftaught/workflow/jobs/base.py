"""What finetune and predict ask of each downstream task: its data, its model, its figures."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from selftaught.bundle import Bundle
from selftaught.data import Source
from selftaught.downstream import Downstream
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.evaluation.intervals import Interval
from selftaught.modality.base import Modality
from selftaught.train.progress import Meter
from selftaught.workflow.evaluate import Split


class Job(ABC):
    """One downstream task.

    name: as in `--task`. folder: what the default folder of its results begins with. file: beside the encoder's weights,
    those of the task. gain: how a difference of a metric is said, for the verdict.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    file: ClassVar[str]
    gain: ClassVar[dict[str, str]]

    @abstractmethod
    def parts(self, run: Path, loaded: Bundle, data: Any, test: Any, quiet: bool) -> Split:
        """What teaches and what is tested; nothing tested was seen by pretraining or teaches."""

    @abstractmethod
    def draw(self, parts: Split, amount: float, seed: int) -> np.ndarray:
        """Positions in `parts.train` of the samples that teach: a share up to 1, or a number above."""

    def hashes(self, parts: Split, index: np.ndarray) -> np.ndarray:
        """Content hashes of the samples of `parts.train` at `index`, as `seen.npy` holds them."""
        return parts.train.hashes[index]

    @abstractmethod
    def describe(self, mode: str) -> dict[str, Any]:
        """Default optimiser settings."""

    @abstractmethod
    def settings(self, mode: str, given: dict[str, Any]) -> dict[str, Any]:
        """The task's settings, checked before any data is read. given: of `--set task.NAME`."""

    @abstractmethod
    def facts(self, parts: Split, settings: dict[str, Any]) -> dict[str, Any]:
        """What the bundle says of the task: all that `build` needs, as JSON values."""

    @abstractmethod
    def build(self, encoder: Encoder, modality: Modality, facts: dict[str, Any], mode: str) -> Downstream:
        """The task on an encoder; what is random in it comes from torch's generator."""

    @abstractmethod
    def weights(self, task: Any) -> dict[str, Tensor]:
        """The task's own weights, without the encoder's."""

    @abstractmethod
    def load(self, task: Any, weights: dict[str, Tensor]) -> None:
        """Put `weights` back."""

    @abstractmethod
    def measure(self, task: Any, parts: Split, device: torch.device, quiet: bool) -> Any:
        """What is found on the n test samples, in a form that `figures` and `differences` are made of; its len is n."""

    @abstractmethod
    def figures(self, found: Any, seed: int) -> dict[str, Interval]:
        """Each metric, with its 95 % interval."""

    @abstractmethod
    def differences(self, found: Any, other: Any, seed: int) -> dict[str, Interval]:
        """Each metric of `found` minus that of `other`, with the 95 % interval of the pairs."""

    @abstractmethod
    def open(self, loaded: Bundle, data: Any, quiet: bool) -> Source:
        """Data to predict."""

    @abstractmethod
    def predictions(
        self, task: Any, facts: dict[str, Any], source: Any, device: torch.device, meter: Meter
    ) -> dict[str, list[Any]]:
        """Columns of the file that predict writes."""


def not_of_set(given: dict[str, Any], **elsewhere: str) -> None:
    """UserError for what `--set task.NAME` may not say, because an option or the data says it."""
    for name, where in elsewhere.items():
        if name in given:
            raise UserError(f"setting 'task.{name}' is said by {where}; leave it out")
