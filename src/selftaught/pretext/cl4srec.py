"""CL4SRec: the next item is predicted, and two views of a history are told apart from those of all others.

Xie, Sun, Liu, Wu, Gao, Zhang, Ding, Cui 2022, "Contrastive Learning for Sequential Recommendation" (arXiv 2010.14395).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor

from selftaught.batch import Batch, Seen, Shown, Step, Tokens
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.contrastive import nt_xent
from selftaught.losses.items import softmax_loss
from selftaught.modality.event import EventModality
from selftaught.pretext.base import Pretext, customised


class CL4SRec(Pretext):
    """L = L_main + weight L_cl (eq. 15): L_main as in next_item, over all items; L_cl is NT-Xent on the states after the last
    event of two views, each of another operation: crop, mask, reorder."""

    @dataclass(frozen=True)
    class Config:
        """weight: of L_cl, the paper's 0.1. similarity: "dot" as published, with temperature 1; but states have just left
        LayerNorm, eight times as long as unit vectors, and their products drown the next item (docs/benchmarks.md), so directions
        alone are compared. view: changes to the operations' shares, as {"crop": 0.4, "mask": null}.
        """

        weight: float = 0.1
        similarity: Literal["cosine", "dot"] = "cosine"
        temperature: float = 0.2
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            if not self.temperature > 0:
                raise UserError(f"pretext.temperature is {self.temperature:g}; it must be above 0")
            if self.weight < 0:
                raise UserError(f"pretext.weight is {self.weight:g}; it must be 0 or more")

    family = "generative and contrastive"
    paper = "Xie et al. 2022, arXiv 2010.14395"
    kinds = frozenset({"event"})
    needs = frozenset({"causal_items"})
    wants = frozenset({"histories"})
    collapses = False  # one state for all would lose the next item
    splits_batch = False

    def __init__(self, encoder: Encoder, modality: EventModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: EventModality
        self.view = customised(modality.contrastive_view(), config.view)

    def forward(self, batch: Batch) -> Step:
        before, target, asked = self.modality.follows(batch)
        h = self.encoder(before).tokens[asked]
        main = softmax_loss(h, cast(Any, self.encoder).embeddings, target[asked])
        z1, z2 = self.encoder(self.modality.join(self.drawn(batch))).pooled.chunk(2)
        contrast, accuracy = nt_xent(z1, z2, self.config.temperature, normalized=self.config.similarity == "cosine")
        metrics = {"next_item": main.detach(), "contrast": contrast.detach(), "accuracy": accuracy}
        return Step(main + self.config.weight * contrast, metrics)

    def drawn(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """Both views."""
        return self.modality.pair(batch, self.view)

    def show(self, batch: Batch) -> Shown:
        views = self.drawn(batch)
        seen = tuple(Seen(f"view {i}", x) for i, x in enumerate(views, 1))
        return Shown(seen, self.modality.shares(batch, self.view, views))

    def project(self, pooled: Tensor) -> Tensor:
        return pooled

    def chance(self, batch_size: int) -> float:
        """All items alike, and all views."""
        return math.log(len(self.modality.items)) + self.config.weight * math.log(2 * batch_size - 1)
