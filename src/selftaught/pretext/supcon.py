"""SupCon: SimCLR in which all samples of a class are views of one another, where their labels are known.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan 2020, "Supervised Contrastive Learning".
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from selftaught import rng
from selftaught.batch import Batch, Step
from selftaught.errors import UserError
from selftaught.heads import Norm
from selftaught.losses.contrastive import sup_con
from selftaught.pretext.views import TwoViews, above_zero, refuse_one

_USED = 83  # stream of randomness that says whose label is used


class SupCon(TwoViews):
    """Encoder f, projection head g, the loss L_out (eq. 2) on g(f(view 1)) and g(f(view 2)) and the labels.

    A sample without a label has one positive, the other view of itself, as in SimCLR.
    """

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """hidden, norm: of a head of one hidden layer of 2048 without BatchNorm, as published.

        temperature: the paper's 0.1. labels: share of the labelled samples whose label is used, always that of the same
        samples: what few labels give. The labels of the others are not read.
        """

        hidden: int | None = 2048
        norm: Norm = "none"
        temperature: float = 0.1
        labels: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "temperature")
            if not 0 < self.labels <= 1:
                raise UserError(f"setting 'pretext.labels' is {self.labels}; it must be a share in (0, 1]")

    family = "contrastive"
    paper = "Khosla et al. 2020, arXiv:2004.11362"
    wants = frozenset({"variety"})
    supervised = True
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {"image": {"hidden": None, "view": {"crop_scale": [0.2, 1.0]}}}

    def used(self, batch: Batch) -> Int[Tensor, " b"]:
        """The labels that are used, -1 elsewhere."""
        none = torch.full_like(batch.index, -1)
        if batch.labels is None:
            return none
        draw = rng.uniform(rng.fold(_USED), batch.index, 1)[:, 0]
        return torch.where(draw < self.config.labels, batch.labels, none)

    def forward(self, batch: Batch) -> Step:
        refuse_one(batch, self.name, lacks="negatives")
        z1, z2 = self.projected(batch)
        labels = self.used(batch)
        loss, accuracy = sup_con(z1, z2, labels, self.config.temperature)
        return Step(loss, {"accuracy": accuracy, "labelled": (labels >= 0).float().mean()})

    def chance(self, batch_size: int) -> float:
        """Cross-entropy of a uniform guess among the 2N - 1 other views, whichever of them are positives."""
        return log(2 * batch_size - 1)
