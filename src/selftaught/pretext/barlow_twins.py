"""Barlow Twins: over a batch each dimension correlates with itself in the other view, and with no other dimension.

Zbontar, Jing, Misra, LeCun, Deny 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction".
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from selftaught.batch import Batch, Step
from selftaught.losses.decorrelation import barlow_twins
from selftaught.pretext.views import TwoViews, refuse_one, zero_or_more


class BarlowTwins(TwoViews):
    """Encoder f and projector g; the cross-correlation matrix of g(f(view 1)) and g(f(view 2)) is to be the identity."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """off_diagonal: weight of the correlations between different dimensions (lambda, section 2.2)."""

        hidden: int | None = 8192
        out: int = 8192
        layers: int = 3
        off_diagonal: float = 0.0051

        def __post_init__(self) -> None:
            super().__post_init__()
            zero_or_more(self, "off_diagonal")

    family = "decorrelation"
    paper = "Zbontar et al. 2021, arXiv:2103.03230"
    wants = frozenset({"variety"})
    asymmetric = True
    last_bias = False  # standardising takes it away
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"hidden": 1024, "out": 1024, "view": {"crop_scale": [0.2, 1.0]}}
    }

    def forward(self, batch: Batch) -> Step:
        refuse_one(batch, self.name)
        z1, z2 = self.projected_apart(batch)
        loss, same, other = barlow_twins(z1, z2, self.config.off_diagonal)
        return Step(loss, {"same_correlation": same, "other_correlation_squared": other})
