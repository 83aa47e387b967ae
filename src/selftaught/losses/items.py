"""Losses over a catalogue of items. The table holds an embedding for each id: 0 is no item, the last the mask.

All are means over the targets of all ranks, as in `losses.tokens`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from selftaught.ranks import mean_count

_LOGITS, _LOGITS_DEVICE = 1 << 20, 1 << 26  # held at a time: on a CPU they should stay near the cache
_LEAST_ROWS = 64  # fewer would read a table of a million items more often than they compute with it


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum over rows of -log softmax(hidden items')[target].

    The gradient is made beside the loss, while a part's logits are there: a softmax costs as much as its gradient, and a loss
    knows its own but for a factor. So there is neither an n x V matrix nor a second pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, items: Tensor, target: Tensor, backward: bool) -> Tensor:
        room = _LOGITS if hidden.device.type == "cpu" else _LOGITS_DEVICE
        rows = max(_LEAST_ROWS, room // len(items))
        total = hidden.new_zeros(())
        gradients = [torch.zeros_like(x) for x in (hidden, items)] if backward else []
        for begin in range(0, len(hidden), rows):
            part = slice(begin, begin + rows)
            h, t = hidden[part], target[part, None]
            logits = h @ items.T
            own, top = logits.gather(1, t), logits.amax(1, keepdim=True)
            weight = logits.sub_(top).exp_()
            mass = weight.sum(1, keepdim=True)
            total += (mass.log() + top - own).sum()
            if backward:
                weight /= mass
                # Not p - 1, which cancels where the target is nearly certain: minus the sum of the other weights.
                weight.scatter_(1, t, 0.0)
                weight.scatter_(1, t, -weight.sum(1, keepdim=True))
                torch.mm(weight, items, out=gradients[0][part])
                gradients[1].addmm_(weight.T, h)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, items = ctx.saved_tensors
        return grad * hidden, grad * items, None, None


def _wide(*halves: Tensor) -> list[Tensor]:
    """Of half precision no longer; a test's float64 stays."""
    return [x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in halves]


def softmax_loss(hidden: Float[Tensor, "n d"], table: Float[Tensor, "v d"], target: Int[Tensor, " n"]) -> Tensor:
    """Mean of -log softmax(h E')[target] over all items, in float32. Logits are held for some rows at a time, so memory does not
    grow with n times the catalogue."""
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, items = _wide(hidden, table[1:-1])
        backward = torch.is_grad_enabled() and (hidden.requires_grad or table.requires_grad)
        total: Tensor = _SummedCrossEntropy.apply(hidden, items, target - 1, backward)
    return total / mean_count(target)


def sampled_softmax_loss(
    hidden: Float[Tensor, "n d"],
    table: Float[Tensor, "v d"],
    target: Int[Tensor, " n"],
    negatives: Int[Tensor, " s"],
    share: Float[Tensor, " v"] | None = None,
) -> Tensor:
    """The same with the denominator estimated from `negatives`, ids drawn with replacement and shared by all rows (Bengio &
    Senecal 2008; Jean et al. 2015). share: how often each id is drawn; None: all items alike.

    A negative stands for 1 / (s share) items, so the log of that is added to its logit; one that is a row's target is left out
    there, because the target is in the sum itself.
    """
    s = len(negatives)
    weight = (
        torch.full((s,), (len(table) - 2) / s, device=table.device) if share is None else 1 / (s * share[negatives])
    )
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, table = _wide(hidden, table)
        own = (hidden * table[target]).sum(1, keepdim=True)
        others = hidden @ table[negatives].T + weight.log()
    others = others.masked_fill(negatives == target[:, None], -torch.inf)
    return (torch.cat([own, others], 1).logsumexp(1) - own[:, 0]).sum() / mean_count(target)


def binary_loss(
    hidden: Float[Tensor, "n d"],
    table: Float[Tensor, "v d"],
    target: Int[Tensor, " n"],
    negatives: Int[Tensor, "n k"],
) -> Tensor:
    """Mean of -log s(h e_target) - 1/k sum log(1 - s(h e_negative)), s the logistic function (Kang & McAuley 2018, section III-E,
    with k = 1)."""
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, table = _wide(hidden, table)
        own = (hidden * table[target]).sum(1)
        others = torch.einsum("nd,nkd->nk", hidden, table[negatives])
    return (F.softplus(-own) + F.softplus(others).mean(1)).sum() / mean_count(target)


def bpr_loss(
    state: Float[Tensor, "n d"],
    table: Float[Tensor, "v d"],
    target: Int[Tensor, " n"],
    negatives: Int[Tensor, " n"],
) -> Tensor:
    """Mean of -log s(h e_target - h e_negative) (BPR, Rendle et al. 2009, section 4.1)."""
    state, table = _wide(state, table)
    own, other = ((state * table[ids]).sum(1) for ids in (target, negatives))
    return F.softplus(other - own).sum() / mean_count(target)


def drawn(u: Tensor, items: int) -> Tensor:
    """Ids 1 to `items` from uniform numbers."""
    return 1 + (u.double() * items).long().clamp_max(items - 1)


def beside(own: Int[Tensor, "n m"], u: Float[Tensor, "n k"], items: int) -> Int[Tensor, "n k"]:
    """Ids from uniform numbers: any item but those of a row of `own`, ids in any order, 0 for none. Of a row that has them all
    any, for nothing else is left."""
    none = items + own.shape[1] + 1  # behind all that is drawn
    found = own.masked_fill(own == 0, none).sort(1).values
    found = found.masked_fill(found == F.pad(found, (1, 0))[:, :-1], none).sort(1).values  # each once
    count = (found < none).sum(1, keepdim=True)
    found = found.masked_fill(count == items, none)
    free = items - count % items
    nth = (u.double() * free).long().minimum(free - 1)
    # What is drawn lies behind all ids of the row that have at most `nth` others before them.
    others = found - 1 - torch.arange(found.shape[1], device=own.device)
    return 1 + nth + torch.searchsorted(others, nth, right=True)
