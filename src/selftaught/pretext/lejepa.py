"""LeJEPA: every view is near the mean of the large ones, and embeddings are spread as an isotropic Gaussian.

Balestriero, LeCun 2025, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics".
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from selftaught import rng
from selftaught.batch import Batch, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.contrastive import normalize
from selftaught.losses.gaussian import sigreg
from selftaught.modality.base import Modality
from selftaught.pretext.views import MultiCrop, above_zero

_DIRECTIONS = 84  # stream of randomness


class LeJEPA(MultiCrop):
    """Encoder f and projector g on two global and some local views; no teacher, no stop-gradient, no schedule."""

    @dataclass(frozen=True)
    class Config(MultiCrop.Config):
        """weight: of SIGReg against the prediction, which has the rest (lambda); the paper recommends 0.05.

        slices: random directions of a step. knots, reach: where the characteristic function is compared, from 0 to reach.
        hidden, out, layers: of the projector. The scales of the crops are the authors'.
        """

        hidden: int | None = 2048
        out: int = 512
        layers: int = 3
        weight: float = 0.05
        slices: int = 1024
        knots: int = 17
        reach: float = 3.0
        global_scale: tuple[float, float] = (0.3, 1.0)
        local_scale: tuple[float, float] = (0.05, 0.3)

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "slices", "reach")
            if not 0 <= self.weight <= 1:
                raise UserError(f"setting 'pretext.weight' is {self.weight}; it must be in [0, 1]")
            if self.knots < 2:
                raise UserError(f"setting 'pretext.knots' is {self.knots}; it must be 2 or more")

    family = "decorrelation"
    paper = "Balestriero & LeCun 2025, arXiv:2511.08544"
    wants = frozenset({"variety"})
    published_view: ClassVar[dict[str, Any]] = {
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "solarise": 0.2,
    }
    # Without local views, which are 14 px wide where pictures have 32: on digits two global ones teach more, and cost less.
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"hidden": 512, "out": 64, "slices": 256, "local": 0, "global_scale": [0.2, 1.0], "weight": 0.02}
    }

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.local_view = replace(self.local_view, solarise=self.views[1].solarise)  # the same colours for all views

    def directions(self, batch: Batch) -> Tensor:
        """Unit vectors [slices, out], uniform on the sphere: a function of seed and step, the same on all ranks."""
        rows = torch.arange(self.config.slices, device=batch.index.device)
        u = rng.uniform(rng.fold(batch.seed, batch.step, _DIRECTIONS), rows, self.config.out)
        # Half a step off 0, whose normal is infinite.
        return normalize(torch.special.ndtri(u.double() + 2.0**-25).float())

    def forward(self, batch: Batch) -> Step:
        views = self.drawn(batch)
        z = self.head(self.encoded(views)).float().unflatten(0, (len(views), len(batch)))
        prediction = (z - z[:2].mean(0)).square().mean()
        gaussian = sigreg(z, self.directions(batch), self.config.knots, self.config.reach)
        weight = self.config.weight
        loss = (1 - weight) * prediction + weight * gaussian
        return Step(loss, {"prediction": prediction.detach(), "sigreg": gaussian.detach()})
