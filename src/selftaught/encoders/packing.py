"""Tokens of a batch without padding, and attention over them.

They are put one after the other, [1, T]: every layer but attention treats tokens alone, and attention gets them back in
rows. So a padded position costs nothing anywhere else, and no text sees another.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Packing(NamedTuple):
    """Where the T packed tokens of a batch lie in its rows: flat int64 [T], into [B * L]; rows (B, L); valid [B, L]. causal: no
    token sees what follows it, whatever the architecture."""

    flat: Tensor
    rows: tuple[int, int]
    valid: Tensor
    causal: bool = False

    @classmethod
    def of(cls, valid: Tensor) -> "Packing":
        return cls(valid.flatten().nonzero()[:, 0], (valid.shape[0], valid.shape[1]), valid)

    def positions(self) -> Tensor:
        """Where each token lies in its row, int64 [T]."""
        return self.flat % self.rows[1]

    def near(self, reach: int) -> Tensor:
        """Whether a token of a row sees another, bool [B, 1, L, L], if none looks further than `reach` tokens away."""
        at = torch.arange(self.rows[1], device=self.valid.device)
        far = (at - at[:, None]).abs()
        # Where there is no token, the position sees itself: softmax over nothing is NaN, in the gradient as well.
        return (far <= reach) & self.valid[:, None, None, :] | (far == 0)

    def spread(self, packed: Tensor) -> Tensor:
        """[T, ...] to [B, L, ...], zero where there is no token."""
        b, length = self.rows
        out = packed.new_zeros(b * length, *packed.shape[1:])
        return out.index_copy(0, self.flat, packed).unflatten(0, (b, length))


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    """softmax(scale q kT) v. On a CPU in float32 always: torch's bf16 kernel is slower there, in backward several times for short
    rows."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale)
    with torch.autocast("cpu", enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale).bfloat16()


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    memory: dict[int, tuple[Tensor, Tensor]] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface for packed tokens: q, k, v [1, H, T, D] -> [1, T, H, D].

    attention_mask: bool [B, 1, L, L], which tokens of its row each sees; None: all of them, or those before it.
    Without a packing it is for rows without padding: q, k, v [B, H, L, D]. memory: keys and values of earlier calls, by
    layer; new ones are put behind them.
    """
    if packing is None:
        if memory is not None:
            layer: Any = module.layer_idx
            if layer in memory:
                key, value = (torch.cat(both, 2) for both in zip(memory[layer], (key, value), strict=True))
            memory[layer] = key, value
        causal = bool(getattr(module, "is_causal", False)) and query.shape[2] > 1
        assert not causal or query.shape[2] == key.shape[2], "several tokens at once have nothing before them"
        out = _attention(query, key, value, None, dropout, causal, scaling)
        return out.transpose(1, 2), None
    # Heads before tokens only inside the rows: [B, H, L, D].
    q, k, v = (packing.spread(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
    causal = packing.causal or bool(
        getattr(module, "is_causal", False)
    )  # what lies behind the end of a text is never looked at then
    mask = None if causal else packing.valid[:, None, None, :] if attention_mask is None else attention_mask
    out = _attention(q, k, v, mask, dropout, causal, scaling)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, packing.flat)[None], None
