"""MoCo: a view is told from others by the keys that a slowly following copy of the network makes of them.

Version 1: He, Fan, Wu, Xie, Girshick 2020, "Momentum Contrast for Unsupervised Visual Representation Learning".
Version 2: Chen, Fan, Girshick, He 2020, "Improved Baselines with Momentum Contrastive Learning".
Version 3: Chen, Xie, He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers".

Version 2 shuffles keys among GPUs before BatchNorm, lest a query know its key by the statistics of the batch they share. Here
queries and keys are passes of their own, of networks with different weights, each with the statistics of its whole batch, on
several GPUs that of all of them. This makes the leak smaller and does not exclude it; a ViT has no BatchNorm and no leak.
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from selftaught.batch import Batch, Step
from selftaught.ema import EMA, cosine
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import Norm, ProjectionHead
from selftaught.losses.contrastive import info_nce, normalize
from selftaught.memory import Queue
from selftaught.modality.base import Modality
from selftaught.pretext.views import TwoViews, above_zero, refuse_one

_VERSIONS: dict[int, dict[str, Any]] = {
    2: {"hidden": 2048, "out": 128, "layers": 2, "norm": "none", "momentum": 0.999},
    3: {"hidden": 4096, "out": 256, "layers": 3, "norm": "batch", "momentum": 0.99},
}
_VIEWS: dict[int, dict[str, Any]] = {  # of version 3 they are BYOL's
    2: {"crop_scale": [0.2, 1.0], "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    3: {},
}
_PUBLISHED: Any = None  # stands for what the version has


class MoCo(TwoViews):
    """Query encoder and head; key encoder and head that follow them.

    Version 2: keys of earlier batches, in a queue, are the negatives. Version 3: those of the batch are, a predictor follows
    the queries' head, and each view is both query and key; a ViT's embedding of patches is left as it was at random, without
    which training is not stable (section 4).
    """

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """version: 2 or 3, whose hidden, out, layers and norm of the head, and momentum, are taken where none are given. `view`
        changes that of the version. Version 3 has three layers, as for ViTs; with ResNets its authors have two, temperature 1
        and crops from a fifth of the picture on.

        temperature: of both versions. momentum: share of itself that the copy keeps each step; in version 3 at first, rising
        to 1 along half a cosine. queue: keys of earlier batches that version 2 holds.
        """

        version: Literal[2, 3] = 2
        hidden: int | None = _PUBLISHED
        out: int = _PUBLISHED
        layers: int = _PUBLISHED
        norm: Norm = _PUBLISHED
        temperature: float = 0.2
        momentum: float = _PUBLISHED
        queue: int = 65536

        def __post_init__(self) -> None:
            for name, value in _VERSIONS[self.version].items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
            object.__setattr__(self, "view", {**_VIEWS[self.version], **(self.view or {})})
            super().__post_init__()
            above_zero(self, "temperature", "queue")
            if not 0 <= self.momentum < 1:
                raise UserError(f"setting 'pretext.momentum' is {self.momentum}; it must be in [0, 1)")

    family = "contrastive"
    paper = "He et al. 2020, arXiv:1911.05722"
    wants = frozenset({"variety"})
    # A queue of some batches, and a copy that follows within a hundred steps: there are only thousands.
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"hidden": 1024, "queue": 4096, "momentum": 0.99, "view": {"crop_scale": [0.2, 1.0]}}
    }

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        third = config.version == 3
        self.last_norm = self.asymmetric = third
        super().__init__(encoder, modality, config)
        if third:
            for name, parameter in encoder.named_parameters():
                if ".patch_embed." in name:
                    parameter.requires_grad_(False)
            normed = config.norm != "none" and bool(encoder.patch)  # the authors' predictor for ResNets ends without
            hidden = config.hidden or encoder.width
            self.predictor = ProjectionHead(config.out, hidden, config.out, norm=config.norm, last_norm=normed)
        else:
            self.queue = Queue(config.queue, config.out)
        self.key_encoder, self.key_head = (EMA(part, config.momentum, runs=True) for part in (encoder, self.head))
        self.seen: list[Tensor] = []

    def forward(self, batch: Batch) -> Step:
        return self.symmetric(batch) if self.config.version == 3 else self.queued(batch)

    def queued(self, batch: Batch) -> Step:
        """Version 2: view 1 is the query, view 2 its key, the queue holds the others (algorithm 1 of version 1)."""
        if self.config.norm == "batch":
            refuse_one(batch, self.name)
        one, two = self.drawn(batch)
        query, key = self.head(self.encoder(one).pooled), self.keys(two)
        negatives = self.queue.rows if self.training else self.queue.pushed_alone()
        loss, accuracy = info_nce(query, key, self.config.temperature, negatives=negatives)
        if self.training:
            self.seen.append(normalize(key))
        return Step(loss, {"accuracy": accuracy})

    def symmetric(self, batch: Batch) -> Step:
        """Version 3: each view's query among the other view's keys, of all ranks (algorithm 1, with its factor 2 tau)."""
        refuse_one(batch, self.name, lacks="negatives")
        views, tau = self.drawn(batch), self.config.temperature
        q1, q2 = (self.predictor(self.head(self.encoder(view).pooled)) for view in views)
        k1, k2 = (self.keys(view) for view in views)
        one, two = info_nce(q1, k2, tau), info_nce(q2, k1, tau)
        return Step(2 * tau * (one.loss + two.loss), {"accuracy": (one.accuracy + two.accuracy) / 2})

    @torch.no_grad()
    def keys(self, view: Tensor) -> Float[Tensor, "n out"]:
        """What the copy makes of a view."""
        keys: Tensor = self.key_head(self.key_encoder(view).pooled)
        return keys

    def after_step(self, progress: float) -> None:
        """The copy follows, and the queue takes up the keys of the step."""
        momentum = self.config.momentum
        if self.config.version == 3:
            momentum = cosine(momentum, 1.0, progress)
        self.key_encoder.update(self.encoder, momentum)
        self.key_head.update(self.head, momentum)
        if self.config.version == 2 and self.seen:
            self.queue.push(torch.cat(self.seen))
        self.seen.clear()

    def chance(self, batch_size: int) -> float:
        """When all keys are alike: cross-entropy of a guess among the key and the queue, or among the batch's keys, twice."""
        if self.config.version == 3:
            return 4 * float(self.config.temperature) * log(batch_size)
        return log(1 + self.config.queue)
