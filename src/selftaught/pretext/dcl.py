"""DCL: SimCLR whose denominator leaves the positive out, which lets small batches learn as well as large ones.

Yeh, Hong, Hsu, Liu, Chen, LeCun 2022, "Decoupled Contrastive Learning".
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

from selftaught.batch import Batch, Step
from selftaught.losses.contrastive import nt_xent
from selftaught.pretext.views import TwoViews, above_zero, refuse_one


class DCL(TwoViews):
    """Encoder f, projection head g, the decoupled loss (eq. 6) on g(f(view 1)) and g(f(view 2))."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """temperature: 0.1, as in the paper. sigma: None weighs all positives alike; a number weighs each by von Mises and
        Fisher's density (DCLW, section 3.2; the paper's is 0.5), so that positives which are far apart count more.
        """

        temperature: float = 0.1
        sigma: float | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "temperature", "sigma")

    family = "contrastive"
    paper = "Yeh et al. 2022, arXiv:2110.06848"
    kinds = frozenset({"image", "text"})
    wants = frozenset({"variety"})
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"view": {"crop_scale": [0.2, 1.0]}},
        "text": {"view": {"crop": [0.3, 0.7]}},
    }

    def forward(self, batch: Batch) -> Step:
        refuse_one(batch, self.name, lacks="negatives")
        z1, z2 = self.projected(batch)
        loss, accuracy = nt_xent(z1, z2, self.config.temperature, decoupled=True, sigma=self.config.sigma)
        return Step(loss, {"accuracy": accuracy})

    def chance(self, batch_size: int) -> float:
        """The logarithm of the number of negatives, when all similarities are alike."""
        return log(max(1, 2 * batch_size - 2))
