"""BYOL: one view's projection by a slowly following copy of the network is predicted from the other view.

Grill, Strub, Altché, Tallec, Richemond, Buchatskaya, Doersch, Avila Pires, Guo, Azar, Piot, Kavukcuoglu, Munos, Valko 2020,
"Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning".
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from selftaught.batch import Batch, Step
from selftaught.ema import EMA, cosine
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import ProjectionHead
from selftaught.losses.cosine import mean_cosine
from selftaught.modality.base import Modality
from selftaught.pretext.views import TwoViews, refuse_one


class BYOL(TwoViews):
    """Online encoder f, projector g and predictor q; the target f', g' is their moving average without q."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """hidden: of projector and predictor alike. out: of both.

        momentum: the target's share of itself at the first step (tau), which rises to 1 along half a cosine (section 3.3).
        0.996 is the paper's for a batch of 4096 and 1000 epochs; 0.99 its for 300.
        """

        hidden: int | None = 4096
        out: int = 256
        momentum: float = 0.996

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.momentum <= 1:
                raise UserError(f"setting 'pretext.momentum' is {self.momentum}; it must be in [0, 1]")

    family = "self-distillation"
    paper = "Grill et al. 2020, arXiv:2006.07733"
    wants = frozenset({"variety"})
    asymmetric = True
    splits_batch = True
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"hidden": 1024, "momentum": 0.9, "view": {"crop_scale": [0.2, 1.0]}}
    }

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.predictor = ProjectionHead(config.out, config.hidden or encoder.width, config.out, norm=config.norm)
        self.target = EMA(self._online(), config.momentum, runs=True)

    def _online(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.head])

    def forward(self, batch: Batch) -> Step:
        if self.config.norm == "batch":
            refuse_one(batch, self.name)
        views = self.drawn(batch)
        q1, q2 = (self.predictor(self.head(self.encoder(view).pooled)) for view in views)
        with torch.no_grad():
            encoder, head = self.target.module.children()
            z1, z2 = (head(encoder(view).pooled) for view in views)
        one, two = mean_cosine(q1, z2), mean_cosine(q2, z1)
        return Step((2 - 2 * one) + (2 - 2 * two), {"cosine": (one + two).detach() / 2})

    def after_step(self, progress: float) -> None:
        self.target.update(self._online(), cosine(self.config.momentum, 1.0, progress))
