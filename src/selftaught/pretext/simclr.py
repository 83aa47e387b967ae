"""SimCLR: two views of a sample are told apart from the views of all others.

Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations".
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar, Literal

from torch import Tensor

from selftaught.batch import Batch, Seen, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import ProjectionHead
from selftaught.losses.contrastive import nt_xent
from selftaught.modality.base import Modality
from selftaught.pretext.base import Pretext, customised


class SimCLR(Pretext):
    """Encoder f, projection head g, NT-Xent on g(f(view 1)) and g(f(view 2))."""

    @dataclass(frozen=True)
    class Config:
        """temperature: the paper's best on CIFAR-10 (appendix B.9) is 0.5; on ImageNet 0.1.

        hidden, out: widths of the projection head; hidden None is the encoder's width.
        norm: of the head, "batch" as published; "layer" or "none" where ranks cannot share BatchNorm's statistics.
        decoupled: leave the positive out of the denominator (DCL, Yeh et al. 2022).
        view: changes to the kind of data's contrastive view.
        """

        temperature: float = 0.5
        hidden: int | None = None
        out: int = 128
        norm: Literal["batch", "layer", "none"] = "batch"
        decoupled: bool = False
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            for name in ("temperature", "hidden", "out"):
                value = getattr(self, name)
                if value is not None and not value > 0:
                    raise UserError(f"setting 'pretext.{name}' is {value}; it must be above 0")

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
    splits_batch = False

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.view = customised(modality.contrastive_view(), config.view)
        self.head = ProjectionHead(encoder.width, config.hidden or encoder.width, config.out, norm=config.norm)

    def drawn(self, batch: Batch) -> list[Any]:
        """Both views."""
        return [self.modality.view(batch, self.view, stream) for stream in (1, 2)]

    def forward(self, batch: Batch) -> Step:
        """Both views go through the encoder together, as in the authors' code, so BatchNorm sees them as one batch."""
        h = self.encoder(self.modality.join(self.drawn(batch))).pooled
        z1, z2 = self.head(h).chunk(2)
        loss, accuracy = nt_xent(z1, z2, self.config.temperature, decoupled=self.config.decoupled)
        return Step(loss, {"accuracy": accuracy})

    def show(self, batch: Batch) -> Shown:
        views = self.drawn(batch)
        seen = tuple(Seen(f"view {i}", x) for i, x in enumerate(views, 1))
        return Shown(seen, self.modality.shares(batch, self.view, views))

    def project(self, pooled: Tensor) -> Tensor:
        return self.head(pooled)

    def chance(self, batch_size: int) -> float:
        """Cross-entropy of a uniform guess among the 2N - 1 other views (2N - 2 when decoupled)."""
        return log(2 * batch_size - (2 if self.config.decoupled else 1))
