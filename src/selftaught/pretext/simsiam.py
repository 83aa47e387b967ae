"""SimSiam: one view's projection is predicted from the other's, and the side that is predicted takes no gradient.

Chen, He 2020, "Exploring Simple Siamese Representation Learning".
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from selftaught.batch import Batch, Step
from selftaught.encoders import Encoder
from selftaught.heads import ProjectionHead
from selftaught.losses.cosine import mean_cosine
from selftaught.modality.base import Modality
from selftaught.pretext.views import TwoViews, above_zero, refuse_one


class SimSiam(TwoViews):
    """Encoder and projector f, predictor h, the mean of two negative cosines (eq. 2)."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """hidden, out, layers: of the projector. bottleneck: width between the predictor's two layers, a quarter of `out` in
        the paper."""

        hidden: int | None = 2048
        out: int = 2048
        layers: int = 3
        bottleneck: int = 512

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "bottleneck")

    family = "self-distillation"
    paper = "Chen & He 2020, arXiv:2011.10566"
    wants = frozenset({"variety"})
    last_norm = True
    splits_batch = True
    constant_lr = frozenset({"predictor"})  # section 4.2: its rate does not decay
    published_view: ClassVar[dict[str, Any]] = {  # section 3, baseline settings: MoCo v2's
        "crop_scale": (0.2, 1.0),
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
    }
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {"image": {"hidden": 1024, "out": 1024, "bottleneck": 256}}

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.predictor = ProjectionHead(config.out, config.bottleneck, config.out, norm=config.norm)

    def forward(self, batch: Batch) -> Step:
        if self.config.norm == "batch":
            refuse_one(batch, self.name)
        z1, z2 = self.projected_apart(batch)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = -(mean_cosine(p1, z2.detach()) + mean_cosine(p2, z1.detach())) / 2
        return Step(loss, {"cosine": -loss.detach()})
