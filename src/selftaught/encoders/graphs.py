"""LightGCN (He et al. 2020) for users nobody trained on: a history is all that it knows of a user."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selftaught.batch import Encoded, Tokens
from selftaught.encoders.base import Encoder, EncoderConfig, item_scores
from selftaught.errors import UserError

SIZES: dict[str, dict[str, Any]] = {
    f"lightgcn_{size}": {"model_type": "lightgcn", "width": width, "layers": 3, "spread": 0.5}
    for size, width in (("small", 64), ("base", 256))
}


class Adjacency(NamedTuple):
    """D_h^-1/2 A D_i^-1/2 of a graph (eq. 7) as sparse CSR [H, V + 2] and its transpose, and the root of each item's degree
    [V + 2], at least 1."""

    forth: Tensor
    back: Tensor
    root: Tensor

    def to(self, device: torch.device) -> Adjacency:
        """The same on a device."""
        return Adjacency(*(x.to(device) for x in self))


class Spread(NamedTuple):
    """What layers over a graph make: histories [H, D]; target [V + 2, D], items as they are compared with; source [V + 2, D]: the
    sum of those of a history's items over the root of their number is that history."""

    histories: Tensor
    target: Tensor
    source: Tensor


def adjacency(history: Tensor, item: Tensor, histories: int, vocabulary: int) -> Adjacency:
    """Of edges int64 [E], sorted by history."""
    degree, popularity = torch.bincount(history, minlength=histories), torch.bincount(item, minlength=vocabulary)
    value = (degree[history].float() * popularity[item].float()).rsqrt()
    order = item.argsort(stable=True)
    forth = _csr(degree, item, value, (histories, vocabulary))
    back = _csr(popularity, history[order], value[order], (vocabulary, histories))
    return Adjacency(forth, back, popularity.clamp_min(1).float().sqrt())


def _csr(counts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    begins = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # the products here are tested
        return torch.sparse_csr_tensor(begins, columns, values, shape, check_invariants=False)


class _Product(torch.autograd.Function):
    """A x for a sparse A that takes no gradient; its transpose is at hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed @ grad, None, None


class Network(nn.Module):
    """e_i^(0) of each id, and what `propagate` made of them last."""

    def __init__(self, vocabulary: int, width: int, spread: float) -> None:
        super().__init__()
        self.items = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.items.weight, std=spread)
        self.register_buffer("source", self.items.weight.detach().clone())
        self.register_buffer("target", self.items.weight.detach().clone())
        self.source: Tensor
        self.target: Tensor


class GraphEncoder(Encoder):
    """Histories `Tokens` -> Encoded: of each event what its item gives (tokens), of the whole its propagated state (pooled).

    Nobody has an embedding of his own: e_u^(0) = 0. So a known user's state is the one that an unseen user with his history
    would get, and layers alternate: items have even ones, users odd ones. The tables with which that is computed are made from a
    graph by `propagate`, and kept; the graph is not. Items begin larger than in the authors' code (.5 in place of .1), because a
    state that lacks e_u^(0) is small, and so is then what BPR learns from.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        o = config.options
        if o["layers"] < 1:
            raise UserError(f"encoder.options.layers is {o['layers']}; a user's state needs 1 or more")
        self.config, self.width, self.token_width = config, o["width"], o["width"]
        self.abilities = frozenset({"items", "graph_items"})
        self.depth = 1
        self.model = Network(config.vocabulary, o["width"], o["spread"])

    @property
    def embeddings(self) -> Tensor:
        """The table [V + 2, D] that states are compared with."""
        return self.model.target

    def propagate(self, a: Adjacency) -> Spread:
        """Layers e_u^(k+1) = sum e_i^(k) / sqrt(|N_u| |N_i|), e_i^(k+1) likewise (eq. 3), and their mean (eq. 4), in float32."""
        layers = self.config.options["layers"]
        with torch.autocast(a.root.device.type, enabled=False):
            e = target = self.model.items.weight.float()
            source = histories = None
            for k in range(layers):
                if k % 2:
                    e = _Product.apply(e, a.back, a.forth)
                    target = target + e
                else:  # what histories get from items
                    source = e if source is None else source + e
                    e = _Product.apply(e, a.forth, a.back)
                    histories = e if histories is None else histories + e
            assert source is not None
            assert histories is not None
            share = 1 / (layers + 1)
            return Spread(histories * share, target * share, source * share / a.root[:, None])

    @torch.no_grad()
    def keep(self, spread: Spread) -> None:
        """Serve by these tables from now on."""
        self.model.source.copy_(spread.source)
        self.model.target.copy_(spread.target)

    def states(self, spread: Spread, index: Tensor, inputs: Tokens) -> Tensor:
        """States [B, D] of the histories at int64 [B] of the graph; beyond its end, of `inputs`, row by row."""
        there = index < len(spread.histories)
        own = spread.histories[index.clamp_max(len(spread.histories) - 1)]
        return own if bool(there.all()) else torch.where(there[:, None], own, self.of(spread.source, inputs))

    def first(self, ids: Tensor) -> Tensor:
        """e^(0) of items, in float32."""
        return self.model.items.weight[ids].float()

    def of(self, source: Tensor, inputs: Tokens) -> Tensor:
        """States [B, D] of histories by a table of sources, each item once."""
        once = _first(inputs)
        found = torch.einsum("bld,bl->bd", source[inputs.ids], once.to(source.dtype))
        return found * once.sum(1, keepdim=True).clamp_min(1).to(source.dtype).rsqrt()

    def forward(self, inputs: Tokens, keep: Tensor | None = None) -> Encoded:
        """Events [B, L] -> tokens [B, L, D], zero where there is none; pooled [B, D]."""
        if keep is not None:
            raise UserError(f"encoder '{self.config.name}' cannot skip events")
        tokens = self.model.source[inputs.ids] * inputs.valid[:, :, None]
        return Encoded(tokens, self.of(self.model.source, inputs), inputs.valid)

    def next(self, inputs: Tokens) -> Tensor:
        """What is compared with the items to tell the next one, [B, D]."""
        return self(inputs).pooled

    def scores(self, vectors: Tensor) -> Tensor:
        """Of states [n, D] the scores [n, V + 2] of all items; -inf for what is none."""
        return item_scores(vectors, self.embeddings)

    def layer_of(self, name: str) -> int:
        """One layer is learned."""
        return 0


def _first(inputs: Tokens) -> Tensor:
    """Which events are the first with their item in their row, bool [B, L]."""
    found, order = inputs.ids.masked_fill(~inputs.valid, -1).sort(dim=1, stable=True)
    new = found != torch.cat([found[:, :1] - 1, found[:, :-1]], 1)
    return torch.zeros_like(inputs.valid).scatter(1, order, new) & inputs.valid
