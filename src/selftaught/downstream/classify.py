"""Classification: a linear layer on the pooled features, trained with cross-entropy."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selftaught.batch import Batch, Step
from selftaught.downstream.base import Downstream
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.modality.base import Modality


class Classify(Downstream):
    """Encoder and linear classifier; in training, of whatever mode, on the light view (of pictures: crop and flip)."""

    @dataclass(frozen=True)
    class Config:
        """classes: their number. mode: "full", "head", "lastK" or "loraR" (see `freeze`). smoothing: of the labels."""

        classes: int
        mode: str = "full"
        smoothing: float = 0.0

        def __post_init__(self) -> None:
            if not 0 <= self.smoothing < 1:
                raise UserError(f"setting 'task.smoothing' is {self.smoothing}; it must be in [0, 1)")

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config.mode)
        self.config = config
        self.head = nn.Linear(encoder.width, config.classes)

    def forward(self, batch: Batch) -> Step:
        assert batch.labels is not None
        x = self.modality.view(batch, self.modality.light_view(), stream=1)
        logits = self.head(self.encoder(x).pooled).float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.config.smoothing)
        return Step(loss, {"accuracy": (logits.argmax(1) == batch.labels).float().mean()})

    def predict(self, batch: Batch) -> Float[Tensor, "b k"]:
        """Class probabilities."""
        return self.head(self.encoder(self.modality.plain(batch)).pooled).float().softmax(1)
