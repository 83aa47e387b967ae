"""VICReg: the views of a sample are near, each dimension varies over the batch, and no two dimensions vary together.

Bardes, Ponce, LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning".
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from selftaught.batch import Batch, Step
from selftaught.losses.decorrelation import vicreg
from selftaught.pretext.views import TwoViews, above_zero, refuse_one, zero_or_more


class VICReg(TwoViews):
    """Encoder f and expander h; three terms on h(f(view 1)) and h(f(view 2))."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """invariance, variance, covariance: weights of the terms (lambda, mu, nu). gamma: the standard deviation that each
        dimension is to have. eps: added to variances before the root is taken."""

        hidden: int | None = 8192
        out: int = 8192
        layers: int = 3
        invariance: float = 25.0
        variance: float = 25.0
        covariance: float = 1.0
        gamma: float = 1.0
        eps: float = 1e-4

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "gamma", "eps")
            zero_or_more(self, "invariance", "variance", "covariance")

    family = "decorrelation"
    paper = "Bardes et al. 2022, arXiv:2105.04906"
    wants = frozenset({"variety"})
    asymmetric = True
    last_bias = False  # no term sees it
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"hidden": 1024, "out": 1024, "view": {"crop_scale": [0.2, 1.0]}}
    }

    def forward(self, batch: Batch) -> Step:
        refuse_one(batch, self.name)
        z1, z2 = self.projected_apart(batch)
        c = self.config
        loss, *terms = vicreg(
            z1, z2, invariance=c.invariance, variance=c.variance, covariance=c.covariance, gamma=c.gamma, eps=c.eps
        )
        return Step(loss, dict(zip(("invariance", "variance", "covariance"), terms, strict=True)))
