"""LightGCN: states that neighbours in the graph of users and items pass to each other, ranked by BPR.

He, Deng, Wang, Li, Zhang, Wang 2020, "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation" (arXiv
2002.02126). Users have no embedding of their own here, see `encoders.graphs`.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch

from selftaught.batch import Batch, Seen, Shown, Step
from selftaught.encoders import Encoder
from selftaught.encoders.graphs import GraphEncoder, adjacency
from selftaught.errors import UserError
from selftaught.losses.items import beside, bpr_loss, softmax_loss
from selftaught.modality.event import EventModality
from selftaught.pretext.base import Pretext
from selftaught.ranks import mean_count, whole

_NEGATIVE = 45  # stream of randomness


class LightGCN(Pretext):
    """All layers over the whole graph in each step; a user's items are to score higher for him than others."""

    @dataclass(frozen=True)
    class Config:
        """loss: "bpr" as published, each item of a history beside one that is not in it; "softmax" over all items. weight: of the
        squares of the embeddings that a step asks for (eq. 15)."""

        loss: Literal["bpr", "softmax"] = "bpr"
        weight: float = 1e-4

        def __post_init__(self) -> None:
            if self.weight < 0:
                raise UserError(f"pretext.weight is {self.weight:g}; it must be 0 or more")

    family = "graph"
    paper = "He et al. 2020, arXiv 2002.02126"
    kinds = frozenset({"event"})
    needs = frozenset({"graph_items"})
    wants = frozenset({"histories"})
    collapses = False
    splits_batch = False

    def __init__(self, encoder: Encoder, modality: EventModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: EventModality
        assert modality.graph is not None, "it is there while pretraining"
        graph = modality.graph()
        self.a = adjacency(graph.history, graph.item, graph.histories, modality.vocabulary)

    def forward(self, batch: Batch) -> Step:
        encoder = cast(GraphEncoder, self.encoder)
        self.a = self.a.to(batch.index.device)
        spread = encoder.propagate(self.a)
        encoder.keep(spread)
        x, asked = self.modality.given(batch)
        state, target = encoder.states(spread, batch.index, x)[asked.nonzero()[:, 0]], x.ids[asked]
        embeddings = [encoder.first(target)]
        if self.config.loss == "bpr":
            u = batch.uniform(_NEGATIVE, asked.shape[1])
            other = beside(batch.inputs["items"], u, len(self.modality.items))[asked]
            loss = bpr_loss(state, spread.target, target, other)
            embeddings.append(encoder.first(other))
        else:
            loss = softmax_loss(state, spread.target, target)
        squares = torch.cat(embeddings).square().sum() / mean_count(target)
        return Step(loss + 0.5 * self.config.weight * squares, {"ranking": loss.detach()})

    def after_step(self, progress: float) -> None:
        if progress >= 1:  # the tables are those of the weights before the last step
            with torch.no_grad(), whole(self):
                encoder = cast(GraphEncoder, self.encoder)
                encoder.keep(encoder.propagate(self.a))

    def show(self, batch: Batch) -> Shown:
        return Shown((Seen("encoder reads", self.modality.given(batch)[0]),), {})

    def chance(self, batch_size: int) -> float:
        """Two items, or all, alike."""
        return math.log(2) if self.config.loss == "bpr" else math.log(len(self.modality.items))
