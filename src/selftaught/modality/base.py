"""What every kind of data offers to a pretext task: views of raw samples, and nothing about where they lie."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from selftaught.batch import Batch


class Modality(ABC):
    """Turns a Batch of decoded samples into what an encoder reads."""

    name: ClassVar[str]

    @abstractmethod
    def view(self, batch: Batch, view: Any, stream: int) -> Tensor:
        """A random view of each sample, normalised; a function of (batch.seed, batch.step, stream, batch.index)."""

    @abstractmethod
    def plain(self, batch: Batch) -> Tensor:
        """The view without randomness, for evaluation."""

    @abstractmethod
    def contrastive_view(self) -> Any:
        """The strong augmentation that contrastive methods need."""

    @abstractmethod
    def light_view(self) -> Any:
        """The weak augmentation (crop and flip) of predictive and masked methods."""

    @abstractmethod
    def to_json(self) -> dict[str, object]:
        """All that is needed to preprocess in the same way elsewhere."""
