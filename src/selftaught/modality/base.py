"""What every kind of data offers to a pretext task: views of raw samples, and nothing about where they lie."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from selftaught.batch import Batch, Share


class Modality(ABC):
    """Turns a Batch of decoded samples into what an encoder reads: a tensor of pictures, `Tokens` of text.

    size: of what an encoder reads: the side of a picture in pixels, the longest text in tokens.
    running: whether samples are pieces of something that goes on before and after them (`RunningText`).
    """

    name: ClassVar[str]
    size: int
    running: ClassVar[bool] = False

    @abstractmethod
    def view(self, batch: Batch, view: Any, stream: int) -> Any:
        """A random view of each sample, normalised; a function of (batch.seed, batch.step, stream, batch.index)."""

    def shares(self, batch: Batch, view: Any, made: Sequence[Any]) -> dict[str, Share]:
        """How much of the samples is left in the views that were `made`, beside what `view` asks for; empty: not counted."""
        return {}

    @abstractmethod
    def plain(self, batch: Batch) -> Any:
        """The view without randomness, for evaluation."""

    @abstractmethod
    def join(self, views: Sequence[Any]) -> Any:
        """Views one after the other, as one batch for the encoder."""

    @abstractmethod
    def contrastive_view(self) -> Any:
        """The strong augmentation that contrastive methods need."""

    def paired_views(self) -> tuple[Any, Any]:
        """Two strong augmentations that differ, for methods whose two views are drawn differently; the same where the kind of
        data has one."""
        return self.contrastive_view(), self.contrastive_view()

    @abstractmethod
    def light_view(self) -> Any:
        """The weak augmentation (crop and flip) of predictive and masked methods."""

    @abstractmethod
    def inputs(self, samples: Any) -> dict[str, Tensor]:
        """A batch's inputs from raw samples: pictures uint8 [B, C, H, W], or texts."""

    @abstractmethod
    def to_json(self) -> dict[str, object]:
        """All that is needed to preprocess in the same way elsewhere, but for what is in `files`."""

    def files(self) -> dict[str, str]:
        """Text files that belong to it, by name: a tokenizer, say."""
        return {}
