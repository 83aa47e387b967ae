"""SGL: LightGCN, beside which two graphs with other edges left out must give each node states that are told from all others'.

Wu, Wang, Feng, He, Chen, Lian, Xie 2021, "Self-supervised Graph Learning for Recommendation" (arXiv 2010.10783).
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from selftaught import rng
from selftaught.batch import Batch, Seen, Share, Shown, Step
from selftaught.encoders import Encoder
from selftaught.encoders.graphs import Adjacency, GraphEncoder, Spread, adjacency
from selftaught.errors import UserError
from selftaught.losses.contrastive import info_nce
from selftaught.losses.items import beside, bpr_loss, drawn
from selftaught.modality.event import EventModality, Graph
from selftaught.pretext.base import Pretext
from selftaught.ranks import mean_count, whole

_NEGATIVE, _EDGES, _DRAWN = 46, (47, 48), 49  # streams of randomness
_ITEMS = 2048


class SGL(Pretext):
    """L = L_bpr + weight (L_user + L_item) + decay |e^(0)|^2 (eq. 11): InfoNCE of cosines between two views (eq. 10), each
    without a share of the edges (eq. 5, edge dropout). The others are the users of a batch, and all items, of many 2048."""

    @dataclass(frozen=True)
    class Config:
        """drop, temperature, decay: the authors' settings for Yelp2018. weight: they tried .005 to 1; where users have no
        embedding of their own, .1 drowns the ranking (MovieLens-100K, docs/benchmarks.md).
        """

        drop: float = 0.1
        temperature: float = 0.2
        weight: float = 0.01
        decay: float = 1e-4

        def __post_init__(self) -> None:
            if not 0 < self.drop < 1:
                raise UserError(f"pretext.drop is {self.drop:g}; it must be a share above 0 and below 1")
            if not self.temperature > 0:
                raise UserError(f"pretext.temperature is {self.temperature:g}; it must be above 0")
            for name in ("weight", "decay"):
                if getattr(self, name) < 0:
                    raise UserError(f"pretext.{name} is {getattr(self, name):g}; it must be 0 or more")

    family = "graph, contrastive"
    paper = "Wu et al. 2021, arXiv 2010.10783"
    kinds = frozenset({"event"})
    needs = frozenset({"graph_items"})
    wants = frozenset({"histories"})
    collapses = False  # one state for all would lose the ranking
    splits_batch = False

    def __init__(self, encoder: Encoder, modality: EventModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: EventModality
        assert modality.graph is not None, "it is there while pretraining"
        self.graph = modality.graph()
        self.a = self._normalized(self.graph)

    def _normalized(self, graph: Graph) -> Adjacency:
        return adjacency(graph.history, graph.item, graph.histories, self.modality.vocabulary)

    def forward(self, batch: Batch) -> Step:
        encoder = cast(GraphEncoder, self.encoder)
        self.graph, self.a = self.graph.to(batch.index.device), self.a.to(batch.index.device)
        spread = encoder.propagate(self.a)
        encoder.keep(spread)
        x, asked = self.modality.given(batch)
        state, target = encoder.states(spread, batch.index, x)[asked.nonzero()[:, 0]], x.ids[asked]
        u = batch.uniform(_NEGATIVE, asked.shape[1])
        other = beside(batch.inputs["items"], u, len(self.modality.items))[asked]
        ranking = bpr_loss(state, spread.target, target, other)
        squares = torch.cat([encoder.first(target), encoder.first(other)]).square().sum() / mean_count(target)
        one, two = (encoder.propagate(self._normalized(self.view(batch, stream))) for stream in _EDGES)
        contrast = self.contrast(one, two, batch)
        loss = ranking + self.config.weight * contrast + 0.5 * self.config.decay * squares
        return Step(loss, {"ranking": ranking.detach(), "contrast": contrast.detach()})

    def view(self, batch: Batch, stream: int) -> Graph:
        """The graph without some edges, a function of (seed, step, stream, edge)."""
        edge = torch.arange(len(self.graph.item), device=batch.index.device)
        u = rng.uniform(rng.fold(batch.seed, batch.step, stream), edge, 1)[:, 0]
        return self.graph.without(u < self.config.drop)

    def contrast(self, one: Spread, two: Spread, batch: Batch) -> Tensor:
        """L_user + L_item; held-out users are no nodes of the graph, and add nothing."""
        users = batch.index[batch.index < self.graph.histories]
        items = self.items(batch)
        found = info_nce(one.target[items], two.target[items], self.config.temperature, gathered=False).loss
        if len(users):
            found = found + info_nce(one.histories[users], two.histories[users], self.config.temperature).loss
        return found

    def items(self, batch: Batch) -> Tensor:
        """Ids of the items that a step compares, the same on all ranks."""
        count = len(self.modality.items)
        if count <= _ITEMS:
            return torch.arange(1, count + 1, device=batch.index.device)
        draws = torch.arange(_ITEMS, device=batch.index.device)
        return drawn(rng.uniform(rng.fold(batch.seed, batch.step, _DRAWN), draws, 1)[:, 0], count).unique()

    def after_step(self, progress: float) -> None:
        if progress >= 1:  # the tables are those of the weights before the last step
            with torch.no_grad(), whole(self):
                encoder = cast(GraphEncoder, self.encoder)
                encoder.keep(encoder.propagate(self.a))

    def show(self, batch: Batch) -> Shown:
        edges = len(self.graph.item)
        left = sum(len(self.view(batch, stream).item) for stream in _EDGES)
        share = Share(2 * edges - left, 2 * edges, self.config.drop)
        return Shown((Seen("encoder reads", self.modality.given(batch)[0]),), {"edges left out": share})

    def chance(self, batch_size: int) -> float:
        """Two items alike; all users of a batch alike, and all items."""
        nodes = math.log(batch_size) + math.log(min(_ITEMS, len(self.modality.items)))
        return math.log(2) + self.config.weight * nodes
