"""Two towers: a history and the words of an item, each to a vector; their product tells what comes next, of new items too.

Yi, Yang, Hong, Cheng, Heldt, Kumthekar, Zhao, Wei, Chi 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
Recommendations" (RecSys 2019), section 4.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from selftaught import rng
from selftaught.batch import Batch, Seen, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.items import sampled_softmax_loss
from selftaught.modality.event import EventModality
from selftaught.pretext.base import Pretext

_NEGATIVES = 50  # stream of randomness


class TwoTower(Pretext):
    """A softmax over each target and `negatives` items that are drawn as often as they occur, which their logits are corrected
    for (eq. 3). The paper takes those of the batch, which come as often; here all ranks draw the same ones."""

    @dataclass(frozen=True)
    class Config:
        """negatives: of a step."""

        negatives: int = 1024

        def __post_init__(self) -> None:
            if self.negatives < 1:
                raise UserError(f"pretext.negatives is {self.negatives}; it must be 1 or more")

    family = "contrastive"
    paper = "Yi et al. 2019, RecSys"
    kinds = frozenset({"event"})
    needs = frozenset({"causal_items", "item_words"})
    wants = frozenset({"histories"})
    collapses = False
    splits_batch = False  # the mean is over the events of a step, and micro-batches hold different numbers of them

    def __init__(self, encoder: Encoder, modality: EventModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: EventModality
        assert modality.graph is not None, "it is there while pretraining"
        counts = torch.bincount(modality.graph().item, minlength=modality.vocabulary).float()
        counts[1:-1] += 1  # an item that nobody had is a target of validation
        self.share = counts / counts.sum()
        self.edges = self.share.cumsum(0)  # once: a card adds them up in another order each time

    def forward(self, batch: Batch) -> Step:
        self.share, self.edges = (x.to(batch.index.device) for x in (self.share, self.edges))
        before, target, asked = self.modality.follows(batch)
        h = self.encoder(before).tokens[asked]
        table = cast(Any, self.encoder).embeddings
        loss = sampled_softmax_loss(h, table, target[asked], self.drawn(batch), self.share)
        return Step(loss, {"targets": asked.sum().float()})

    def drawn(self, batch: Batch) -> Tensor:
        """Ids int64 [negatives], drawn with replacement as often as they occur."""
        at = torch.arange(self.config.negatives, device=batch.index.device)
        u = rng.uniform(rng.fold(batch.seed, batch.step, _NEGATIVES), at, 1)[:, 0]
        return torch.searchsorted(self.edges, u, right=True).clamp(1, len(self.modality.items))

    def show(self, batch: Batch) -> Shown:
        return Shown((Seen("encoder reads", self.modality.follows(batch).before),), {})

    def chance(self, batch_size: int) -> float:
        """All items alike."""
        return math.log(len(self.modality.items))
