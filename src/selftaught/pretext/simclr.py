"""SimCLR: two views of a sample are told apart from the views of all others.

Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations".
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

from selftaught.batch import Batch, Step
from selftaught.losses.contrastive import nt_xent
from selftaught.pretext.views import TwoViews, above_zero, refuse_one


class SimCLR(TwoViews):
    """Encoder f, projection head g, NT-Xent on g(f(view 1)) and g(f(view 2))."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """temperature: the paper's best on CIFAR-10 (appendix B.9) is 0.5; on ImageNet 0.1."""

        temperature: float = 0.5

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "temperature")

    family = "contrastive"
    paper = "Chen et al. 2020, arXiv:2002.05709"
    kinds = frozenset({"image", "text"})
    wants = frozenset({"variety"})
    # Ten epochs instead of a thousand: sharper similarities and milder crops learn sooner (docs/benchmarks.md). Two runs of a
    # text that share few words teach its topic.
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"temperature": 0.2, "view": {"crop_scale": [0.2, 1.0]}},
        "text": {"temperature": 0.1, "view": {"crop": [0.3, 0.7]}},
    }

    def forward(self, batch: Batch) -> Step:
        refuse_one(batch, self.name, lacks="negatives")
        z1, z2 = self.projected(batch)
        loss, accuracy = nt_xent(z1, z2, self.config.temperature)
        return Step(loss, {"accuracy": accuracy})

    def chance(self, batch_size: int) -> float:
        """Cross-entropy of a uniform guess among the 2N - 1 other views."""
        return log(2 * batch_size - 1)
