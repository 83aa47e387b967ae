"""A Transformer decoder (Vaswani et al. 2017, section 3.1), pre-norm (Xiong et al. 2020), with a cache for decoding."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selftaught.errors import UserError


class KeyValue(NamedTuple):
    """Keys and values of an attention layer, each [B, H, L, D / H]."""

    keys: Tensor
    values: Tensor

    def then(self, more: "KeyValue") -> "KeyValue":
        """These, and further positions after them."""
        return KeyValue(torch.cat([self.keys, more.keys], 2), torch.cat([self.values, more.values], 2))

    def rows(self, index: Tensor) -> "KeyValue":
        """The rows at `index`, as their own."""
        return KeyValue(self.keys.index_select(0, index), self.values.index_select(0, index))


class Memory(NamedTuple):
    """What a decoder reads of the encoder's tokens: keys and values for each layer; mask bool [B, 1, 1, L], real tokens."""

    layers: list[KeyValue]
    mask: Tensor


class Attention(nn.Module):
    """Multi-head attention whose keys and values are made apart, so that they can be kept."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def read(self, x: Float[Tensor, "b l d"]) -> KeyValue:
        """Keys and values of what is attended to."""
        return KeyValue(self._split(self.key(x)), self._split(self.value(x)))

    def forward(self, x: Float[Tensor, "b t d"], seen: KeyValue, mask: Tensor | None, causal: bool) -> Tensor:
        """What the positions of x find among those that `seen` was read of."""
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(self._split(self.query(x)), *seen, mask, dropout, causal)
        return self.out(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention to the tokens before, to the encoder's tokens, and an MLP, each a residual behind its normalisation."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.own, self.cross = Attention(width, heads, dropout), Attention(width, heads, dropout)
        self.own_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: KeyValue, mask: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """x [R, T, D], the past of each row if there is one, and the memory [B, ...] of R / B rows each."""
        h = self.own_norm(x)
        seen = self.own.read(h) if past is None else past.then(self.own.read(h))
        x = x + self.dropout(self.own(h, seen, None, causal=past is None))
        # Hypotheses of one sentence lie side by side and look at one memory: none of it is copied for them.
        h = self.cross_norm(x).reshape(len(mask), -1, x.shape[2])
        x = x + self.dropout(self.cross(h, memory, mask, causal=False)).reshape(x.shape)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), seen


class Decoder(nn.Module):
    """Hidden states of a sequence's tokens, each from those before it and from the encoder's tokens.

    longest: positions it knows. The embeddings are given, so that they are one tensor with the encoder's.
    """

    def __init__(self, width: int, layers: int, heads: int, longest: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"a decoder {width} wide cannot have {heads} heads; use a number that divides {width}")
        self.positions = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.enter, self.leave = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))

    def read(self, tokens: Float[Tensor, "b l d"], valid: Tensor) -> Memory:
        """What all layers need of the encoder's tokens, once for a sequence."""
        return Memory([layer.cross.read(tokens) for layer in self.layers], valid[:, None, None, :])  # type: ignore[union-attr, operator]

    def forward(
        self, embedded: Float[Tensor, "r t d"], memory: Memory, past: list[KeyValue] | None = None
    ) -> tuple[Float[Tensor, "r t d"], list[KeyValue]]:
        """The states of new tokens behind those in `past` (None: of a whole sequence), and the new past.

        With a past, one token a row: what it may not see does not exist yet.
        """
        start = 0 if past is None else past[0].keys.shape[2]
        x = self.dropout(self.enter(embedded + self.positions[start : start + embedded.shape[1]]))
        seen = []
        for i, layer in enumerate(self.layers):
            x, kept = layer(x, memory.layers[i], memory.mask, None if past is None else past[i])
            seen.append(kept)
        return self.leave(x), seen
