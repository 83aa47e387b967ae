"""Tokens of a batch without padding, and attention over them.

They are put one after the other, [1, T]: every layer but attention treats tokens alone, and attention gets them back in
rows. So a padded position costs nothing anywhere else, and no text sees another.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8
"""Groups of rows at most; each is a call of its own for every part of attention, and small ones cost more than they save."""


class Rows(NamedTuple):
    """Rows that attention is computed over together: of int64 [b], which of the batch they are; valid [b, l]; flat int64 [t],
    where their packed tokens lie in [b * l]."""

    of: Tensor
    valid: Tensor
    flat: Tensor

    def spread(self, packed: Tensor) -> Tensor:
        """These rows' tokens [t, ...] to [b, l, ...], zero where there is none."""
        return _spread(packed, self.flat, self.valid)


class Packing(NamedTuple):
    """Where the T packed tokens of a batch lie in its rows: flat int64 [T], into [B * L]; valid [B, L]; groups: the rows, one
    after the other, in parts of about the same length. causal: no token sees what follows it, whatever the architecture."""

    flat: Tensor
    valid: Tensor
    groups: tuple[Rows, ...]
    causal: bool = False

    @classmethod
    def of(cls, valid: Tensor) -> "Packing":
        """The packing of tokens that are real where `valid`, bool [B, L], is.

        Attention over L padded positions costs L squared, so rows are sorted by length where that saves much. On an accelerator
        never: lengths would have to be waited for.
        """
        b, width = valid.shape
        if valid.device.type == "cpu" and b >= 2 * _GROUPS and width > 0:
            length = (valid * torch.arange(1, width + 1)).amax(1)
            parts = length.argsort(stable=True).tensor_split(_GROUPS)
            longest = [int(length[part[-1]]) for part in parts]
            if sum(len(p) * n * n for p, n in zip(parts, longest, strict=True)) < 0.8 * b * width * width:
                groups = [_rows(valid, part, n) for part, n in zip(parts, longest, strict=True)]
                flat = [g.of[g.flat // n] * width + g.flat % n for g, n in zip(groups, longest, strict=True)]
                return cls(torch.cat(flat), valid, tuple(groups))
        whole = _rows(valid, torch.arange(b, device=valid.device), width)
        return cls(whole.flat, valid, (whole,))

    def pack(self, rows: Tensor) -> Tensor:
        """[B, L, ...] to [T, ...]."""
        return _packed(rows, self.flat)

    def spread(self, packed: Tensor) -> Tensor:
        """[T, ...] to [B, L, ...], zero where there is no token."""
        return _spread(packed, self.flat, self.valid)

    def row(self) -> Tensor:
        """The row each token lies in, int64 [T]."""
        return self.flat // self.valid.shape[1]

    def positions(self) -> Tensor:
        """Where each token lies in its row, int64 [T]."""
        return self.flat % self.valid.shape[1]

    def near(self, reach: int) -> Tensor:
        """Whether a token of a row sees another, bool [B, 1, L, L], if none looks further than `reach` tokens away."""
        at = torch.arange(self.valid.shape[1], device=self.valid.device)
        far = (at - at[:, None]).abs()
        # Where there is no token, the position sees itself: softmax over nothing is NaN, in the gradient as well.
        return (far <= reach) & self.valid[:, None, None, :] | (far == 0)


def _rows(valid: Tensor, of: Tensor, length: int) -> Rows:
    part = valid[of, :length]
    return Rows(of, part, part.flatten().nonzero()[:, 0])


def _packed(rows: Tensor, flat: Tensor) -> Tensor:
    found = rows.flatten(0, 1)
    return found if len(flat) == len(found) else found.index_select(0, flat)  # without padding all lies as it is


def _spread(packed: Tensor, flat: Tensor, valid: Tensor) -> Tensor:
    if len(flat) == valid.numel():
        return packed.unflatten(0, valid.shape)
    out = packed.new_zeros(valid.numel(), *packed.shape[1:])
    return out.index_copy(0, flat, packed).unflatten(0, valid.shape)


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
    # What lies behind the end of a text is never looked at where no token sees what follows it.
    causal = packing.causal or bool(getattr(module, "is_causal", False))
    counts = [len(group.flat) for group in packing.groups]
    parts = zip(*(x[0].transpose(0, 1).split(counts) for x in (query, key, value)), strict=True)
    found = []
    for group, part in zip(packing.groups, parts, strict=True):
        # Heads before tokens only inside the rows: [b, H, l, D].
        q, k, v = (group.spread(x).transpose(1, 2) for x in part)
        mask = None if causal else group.valid[:, None, None, :]
        if mask is not None and attention_mask is not None:
            mask = attention_mask[group.of, :, : q.shape[2], : q.shape[2]]
        out = _attention(q, k, v, mask, dropout, causal, scaling)
        found.append(_packed(out.transpose(1, 2), group.flat))
    return torch.cat(found)[None], None
