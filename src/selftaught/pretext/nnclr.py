"""NNCLR: the positive of a view is what lies nearest to the sample's other view among embeddings of earlier batches.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman 2021, "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning
of Visual Representations".
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from selftaught.batch import Batch, Step
from selftaught.encoders import Encoder
from selftaught.heads import ProjectionHead
from selftaught.losses.contrastive import info_nce, normalize
from selftaught.memory import Queue
from selftaught.modality.base import Modality
from selftaught.pretext.views import TwoViews, above_zero, refuse_one


class NNCLR(TwoViews):
    """Encoder f, projector g, predictor q; the neighbour of g(f(view 1)) is told from the batch by q(g(f(view 2)))."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """hidden, out, layers: of the projector, which is normalised behind its last layer too. predictor_hidden: width of
        the predictor's hidden layer. queue: embeddings that the support set holds. All are the paper's, temperature too.
        """

        hidden: int | None = 2048
        out: int = 256
        layers: int = 3
        predictor_hidden: int = 4096
        queue: int = 98304
        temperature: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "predictor_hidden", "queue", "temperature")

    family = "contrastive"
    paper = "Dwibedi et al. 2021, arXiv:2104.14548"
    wants = frozenset({"variety"})
    last_norm = True
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"hidden": 512, "predictor_hidden": 1024, "queue": 4096, "view": {"crop_scale": [0.2, 1.0]}}
    }

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.predictor = ProjectionHead(config.out, config.predictor_hidden, config.out, norm=config.norm)
        self.queue = Queue(config.queue, config.out)
        self.seen: list[Tensor] = []

    def forward(self, batch: Batch) -> Step:
        """Algorithm 1: each view's neighbour picks the prediction of the other view among those of all ranks."""
        refuse_one(batch, self.name, lacks="negatives")
        z1, z2 = self.projected(batch)
        p1, p2 = self.predictor(torch.cat([z1, z2])).chunk(2)
        one = info_nce(self.neighbours(z1), p2, self.config.temperature)
        two = info_nce(self.neighbours(z2), p1, self.config.temperature)
        if self.training:
            self.seen.append(normalize(z1.detach()))
        return Step((one.loss + two.loss) / 2, {"accuracy": (one.accuracy + two.accuracy) / 2})

    @torch.no_grad()
    def neighbours(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The nearest rows of the support set by cosine; while there are none, the projections themselves."""
        rows, filled = self.queue.rows, self.queue.filled
        with torch.autocast(z.device.type, enabled=False):
            z = normalize(z)
            nearest = (z @ rows.T).masked_fill(~filled, -torch.inf).argmax(1)
            return torch.where(filled.any(), rows[nearest], z)

    def after_step(self, progress: float) -> None:
        """The support set takes up the embeddings of view 1."""
        if self.seen:
            self.queue.push(torch.cat(self.seen))
            self.seen.clear()

    def chance(self, batch_size: int) -> float:
        """Cross-entropy of a uniform guess among the batch's predictions."""
        return log(batch_size)
