"""SimCSE: a text is told apart from others, its two views being nothing but two draws of dropout.

Gao, Yao, Chen 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings" (arXiv 2104.08821), section 3.
"""

from dataclasses import dataclass
from math import log
from typing import Literal

from torch import Tensor, nn

from selftaught.batch import Batch, Seen, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.contrastive import info_nce
from selftaught.modality.text import TextModality
from selftaught.pretext.base import Pretext
from selftaught.pretext.views import refuse_one


class SimCSE(Pretext):
    """h = f(x, z), h' = f(x, z') for dropout masks z, z'; InfoNCE (eq. 4) with the other texts' h' as negatives."""

    @dataclass(frozen=True)
    class Config:
        """temperature: of cosine similarities. pooling: "mean" over the tokens, as this encoder's features are read, or
        "first" token, as in the paper. The head (dense and tanh) is there in training alone.
        """

        temperature: float = 0.05
        pooling: Literal["mean", "first"] = "mean"

        def __post_init__(self) -> None:
            if not self.temperature > 0:
                raise UserError(f"setting 'pretext.temperature' is {self.temperature}; it must be above 0")

    family = "contrastive"
    paper = "Gao et al. 2021, arXiv 2104.08821"
    kinds = frozenset({"text"})
    wants = frozenset({"variety", "words"})
    splits_batch = False

    def __init__(self, encoder: Encoder, modality: TextModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        if not any(isinstance(m, nn.Dropout) and m.p > 0 for m in encoder.modules()):
            raise UserError(
                f"pretext 'simcse' needs dropout, its only augmentation, and encoder '{encoder.config.name}' has none; "
                "use a bert_* encoder, or simclr"
            )
        self.head = nn.Sequential(nn.Linear(encoder.width, encoder.width), nn.Tanh())

    def forward(self, batch: Batch) -> Step:
        refuse_one(batch, self.name, lacks="negatives")
        x = self.modality.plain(batch)
        h = self.encoder(self.modality.join([x, x]))  # one pass: each row draws a dropout mask of its own
        z1, z2 = self.head(h.pooled if self.config.pooling == "mean" else h.tokens[:, 0]).chunk(2)
        loss, accuracy = info_nce(z1, z2, self.config.temperature)
        return Step(loss, {"accuracy": accuracy})

    def show(self, batch: Batch) -> Shown:
        """Both views are this one: dropout is no draw of the batch's."""
        return Shown((Seen("views 1 and 2", self.modality.plain(batch)),), {})

    def project(self, pooled: Tensor) -> Tensor:
        return self.head(pooled)

    def chance(self, batch_size: int) -> float:
        """A uniform guess among the texts of the batch."""
        return log(batch_size)
