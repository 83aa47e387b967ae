"""What the tasks that compare views of a sample have in common: two views, or two and smaller ones, and a projection."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from selftaught.batch import Batch, Seen, Shown
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import Norm, ProjectionHead
from selftaught.modality.base import Modality
from selftaught.pretext.base import Pretext, check_size, customised

_LOCAL = 61  # stream of randomness of the first local view; 1 and 2 are the global ones'


def above_zero(config: Any, *names: str) -> None:
    """Raise UserError unless the settings are above zero; None is as it was."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"setting 'pretext.{name}' is {value}; it must be above 0")


def zero_or_more(config: Any, *names: str) -> None:
    """Raise UserError for settings below zero."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise UserError(f"setting 'pretext.{name}' is {getattr(config, name)}; it must be 0 or more")


def refuse_one(batch: Batch, task: str, lacks: str = "variance") -> None:
    """Raise UserError for a batch of one sample, which has no statistics and nobody to compare with."""
    if len(batch) < 2:
        raise UserError(
            f"a batch of 1 has no {lacks}, which pretext '{task}' needs; use a --batch that gives each rank and micro-batch 2 or "
            "more"
        )


def shares(config: Any, *names: str) -> None:
    """Raise UserError unless the settings are in [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"setting 'pretext.{name}' is {getattr(config, name)}; it must be between 0 and 1")


class TwoViews(Pretext):
    """Encoder f and projection head g on two views; a subclass compares g(f(view 1)) with g(f(view 2))."""

    @dataclass(frozen=True)
    class Config:
        """hidden, out: widths of the projection head; hidden None is the encoder's width. layers: of the head.
        norm: of the head, "batch" as published; "layer" or "none" where ranks cannot share BatchNorm's statistics.
        view: changes to the kind of data's contrastive view.
        """

        hidden: int | None = None
        out: int = 128
        layers: int = 2
        norm: Norm = "batch"
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            above_zero(self, "hidden", "out", "layers")

    last_norm = False  # whether the head's last layer is normalised too
    last_bias = True  # whether it has a bias there
    gelu = False  # whether the head has GELU instead of ReLU
    asymmetric = False  # whether the two views are drawn differently, as BYOL's are
    published_view: ClassVar[dict[str, Any]] = {}  # how the paper's views differ from the kind of data's
    splits_batch = False

    def __init__(self, encoder: Encoder, modality: Modality, config: Any) -> None:
        super().__init__(encoder, modality, config)
        pair = modality.paired_views() if self.asymmetric else (modality.contrastive_view(),) * 2
        self.views = [customised(customised(view, self.published_view), config.view) for view in pair]
        for view in self.views:
            check_size(encoder, getattr(view, "size", None), "view.size")
        self.head = ProjectionHead(
            encoder.width,
            config.hidden or encoder.width,
            config.out,
            layers=config.layers,
            norm=config.norm,
            last_norm=self.last_norm and config.norm != "none",
            last_bias=self.last_bias,
            gelu=self.gelu,
        )

    def drawn(self, batch: Batch) -> list[Any]:
        """The views of each sample, of streams 1 and 2."""
        return [self.modality.view(batch, view, stream) for stream, view in enumerate(self.views, 1)]

    def pooled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features [N, D] of both views, which go through the encoder together, so BatchNorm sees them as one batch."""
        one, two = self.encoder(self.modality.join(self.drawn(batch))).pooled.chunk(2)
        return one, two

    def projected(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Projections [N, out] of both views."""
        one, two = self.head(self.encoder(self.modality.join(self.drawn(batch))).pooled).chunk(2)
        return one, two

    def projected_apart(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same, but to BatchNorm each view is a batch of its own, as where there are no negatives it is published."""
        one, two = (self.head(self.encoder(view).pooled) for view in self.drawn(batch))
        return one, two

    def show(self, batch: Batch) -> Shown:
        views = self.drawn(batch)
        seen = tuple(Seen(f"view {i}", x) for i, x in enumerate(views, 1))
        return Shown(seen, self.modality.shares(batch, self.views[0], views))

    def project(self, pooled: Tensor) -> Tensor:
        return self.head(pooled)


class MultiCrop(TwoViews):
    """Two global views and `local` smaller ones of each sample (SwAV, Caron et al. 2020, section 3.3)."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """local: smaller views of each sample. local_size: their side in pixels; None is 3/7 of the global views', rounded to
        whole patches (the papers' 96 px beside 224). global_scale, local_scale: the shares of the picture's area they show.
        """

        local: int = 6
        local_size: int | None = None
        global_scale: tuple[float, float] = (0.4, 1.0)
        local_scale: tuple[float, float] = (0.05, 0.4)

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "local_size")
            zero_or_more(self, "local")
            for name in ("global_scale", "local_scale"):
                low, high = getattr(self, name)
                if not 0 < low <= high <= 1:
                    raise UserError(
                        f"setting 'pretext.{name}' is {(low, high)}; it must be two shares of the area above 0, in order"
                    )

    needs = frozenset({"sizes"})

    def __init__(self, encoder: Encoder, modality: Modality, config: Any) -> None:
        super().__init__(encoder, modality, config)
        step = encoder.patch or 1
        side = config.local_size or max(step, round(modality.size * 3 / 7 / step) * step)
        if side % step:
            raise UserError(
                f"setting 'pretext.local_size' is {side}; it must be a multiple of the encoder's patch of {step}"
            )
        local = replace(self.views[1], size=side, crop_scale=tuple(config.local_scale), solarise=0.0)
        self.views = [replace(v, crop_scale=tuple(config.global_scale)) for v in self.views]
        self.views = [customised(v, config.view) for v in self.views]
        self.local_view = local
        if config.local:
            check_size(encoder, side, "local_size")

    def drawn(self, batch: Batch) -> list[Any]:
        """Global views first."""
        streams = range(_LOCAL, _LOCAL + self.config.local)
        return super().drawn(batch) + [self.modality.view(batch, self.local_view, stream) for stream in streams]

    def encoded(self, views: list[Any]) -> Tensor:
        """Pooled features [V N, D] of views that global ones begin; those of one size go through the encoder together."""
        parts = [self.modality.join(part) for part in (views[:2], views[2:]) if part]
        return torch.cat([self.encoder(part).pooled for part in parts])

    def show(self, batch: Batch) -> Shown:
        names = ["global view 1", "global view 2", *(f"local view {i + 1}" for i in range(self.config.local))]
        return Shown(tuple(map(Seen, names, self.drawn(batch))), {})
