"""SwAV: which prototypes one view of a picture belongs to is predicted from its other views, balanced over the batch.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments".
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selftaught.batch import Batch, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import Prototypes
from selftaught.losses.clusters import across_views, sinkhorn, used
from selftaught.losses.contrastive import normalize
from selftaught.memory import Queue
from selftaught.modality.base import Modality
from selftaught.pretext.views import MultiCrop, above_zero, shares
from selftaught.ranks import place


class SwAV(MultiCrop):
    """Encoder f, projection head g, prototypes C; z = g(f(view)), scores z·C.

    The codes of the two global views are their scores balanced by Sinkhorn's algorithm, without gradient; each is predicted
    by the softmax of the scores of every other view (eq. 2).
    """

    @dataclass(frozen=True)
    class Config(MultiCrop.Config):
        """prototypes: the paper's 3000 are three times the classes of ImageNet; a few times the batch at most.
        temperature: of the prediction. epsilon, iterations: of Sinkhorn's algorithm.
        queue: earlier projections of each global view that share the prototypes with the batch's, 0 for none; the authors take
            3840 for a batch of 256. queue_from: the share of the run after which they do (15 of their 400 epochs).
        freeze: the share of the run in which the prototypes stay as they are (the first of their 100 epochs).
        """

        global_scale: tuple[float, float] = (0.14, 1.0)
        local_scale: tuple[float, float] = (0.05, 0.14)
        prototypes: int = 3000
        temperature: float = 0.1
        epsilon: float = 0.05
        iterations: int = 3
        queue: int = 0
        queue_from: float = 0.0375
        freeze: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "prototypes", "temperature", "epsilon", "iterations")
            shares(self, "queue_from", "freeze")
            if self.queue < 0:
                raise UserError(f"setting 'pretext.queue' is {self.queue}; it must be 0 (none) or more")

    family = "clustering"
    paper = "Caron et al. 2020, arXiv:2006.09882"
    wants = frozenset({"variety"})
    # Hundreds of steps with AdamW: prototypes that move from the first on soon lie so that all scores are alike, and the loss
    # stays at the logarithm of their number. So does it with as few prototypes as `out`, to which z can be orthogonal.
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"prototypes": 300, "local": 0, "global_scale": [0.2, 1.0], "freeze": 0.5}
    }

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        world = place()[1]
        if config.queue % world:
            raise UserError(
                f"setting 'pretext.queue' is {config.queue}; it must be a multiple of the {world} ranks, which share it"
            )
        self.prototypes = Prototypes(config.out, config.prototypes)
        self.queues = nn.ModuleList(Queue(config.queue, config.out) for _ in range(2 if config.queue else 0))
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()))
        self._seen: list[Tensor] = []

    def forward(self, batch: Batch) -> Step:
        views = self.drawn(batch)
        z = self.head(self.encoded(views)).unflatten(0, (len(views), -1))
        scores = self.prototypes(z)
        if self.training and self.queues:
            self._seen.append(normalize(z[:2].detach()))
        codes = torch.stack([self.codes(view, s) for view, s in enumerate(scores[:2])])
        loss = across_views(scores / self.config.temperature, codes)
        first, second = scores[:2].argmax(-1)
        return Step(loss, {"agreement": (first == second).float().mean(), "prototypes_used": used(codes)})

    @torch.no_grad()
    def codes(self, view: int, scores: Tensor) -> Tensor:
        """Codes [N, K] of a global view's scores, balanced together with those of its queue; each rank has its part of that."""
        counted = None
        if self.queues:
            queue: Any = self.queues[view]
            rank, world = place()
            rows, filled = (x.chunk(world)[rank] for x in (queue.rows, queue.filled))
            counted = torch.cat([filled.new_ones(len(scores)), filled & (self.progress >= self.config.queue_from)])
            scores = torch.cat([scores, self.prototypes(rows)])
        found = sinkhorn(scores, self.config.epsilon, self.config.iterations, counted)
        return found if counted is None else found[: len(counted) - len(rows)]

    def before_step(self, progress: float) -> None:
        if progress < self.config.freeze:
            self.prototypes.freeze()

    def after_step(self, progress: float) -> None:
        self.prototypes.to_unit_length()
        self.progress.fill_(progress)
        for seen in self._seen:
            for queue, rows in zip(self.queues, seen, strict=True):
                queue.push(rows)  # type: ignore[operator]
        self._seen.clear()

    def chance(self, batch_size: int) -> float:
        """Every prototype as likely as another."""
        return log(self.config.prototypes)
