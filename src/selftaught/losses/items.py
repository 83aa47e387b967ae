"""Losses over a catalogue of items. The table holds an embedding for each id: 0 is no item, the last the mask.

All are means over the targets of all ranks, as in `losses.tokens`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selftaught.losses.tokens import mean_count

_AT_ONCE = 1 << 26  # logits held at a time


def softmax_loss(hidden: Float[Tensor, "n d"], table: Float[Tensor, "v d"], target: Int[Tensor, " n"]) -> Tensor:
    """Mean of -log softmax(h E')[target] over all items. Logits are computed in parts, and again in the backward pass, so that
    memory does not grow with n times the catalogue."""
    rows = max(1, _AT_ONCE // len(table))
    if len(hidden) <= rows:
        return _summed(hidden, table, target) / mean_count(target)
    parts = zip(hidden.split(rows), target.split(rows), strict=True)
    total = torch.stack([checkpoint(_summed, h, table, t, use_reentrant=False) for h, t in parts])
    return total.sum() / mean_count(target)


def _summed(hidden: Tensor, table: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ table[1:-1].T).float(), target - 1, reduction="sum")


def sampled_softmax_loss(
    hidden: Float[Tensor, "n d"],
    table: Float[Tensor, "v d"],
    target: Int[Tensor, " n"],
    negatives: Int[Tensor, " s"],
) -> Tensor:
    """The same with the denominator estimated from `negatives`, ids drawn uniformly with replacement and shared by all rows
    (Bengio & Senecal 2008; Jean et al. 2015).

    Each negative stands for V / s items, so log(V / s) is added to its logit; one that is a row's target is left out there.
    """
    items, s = len(table) - 2, len(negatives)
    own = (hidden * table[target]).sum(1, keepdim=True).float()
    others = (hidden @ table[negatives].T).float() + torch.log(torch.tensor(items / s))
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
    own = (hidden * table[target]).sum(1).float()
    others = torch.einsum("nd,nkd->nk", hidden, table[negatives]).float()
    return (F.softplus(-own) + F.softplus(others).mean(1)).sum() / mean_count(target)
