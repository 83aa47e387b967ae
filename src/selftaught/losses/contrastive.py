"""Contrastive losses that never hold a large matrix of similarities.

The losses are functions of two numbers per anchor: the logit of its positive, and the log-sum-exp over its negatives.
The second is streamed tile by tile and its tiles are recomputed in backward, so memory grows with N, not N²; where one
tile holds everything, it is kept instead. Keeping the positive out of the sum also keeps the gradient exact when the
positive dominates: its weight is sigmoid(negatives - positive), where softmax(positive) - 1 would cancel in float32.
"""

from collections.abc import Iterator
from math import log
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from selftaught.ranks import gather, place

_EPS = 1e-12
_TIE = 1e-5  # difference of cosines below which rounding decides
_SAFE_LOGIT = 60.0  # exp(±60), times any batch, is a normal float32: up to here no row needs a shift
_TILE = {"cpu": 512}  # entries per side, even (pairs stay whole): on a CPU a tile should stay near the cache
_TILE_DEVICE = 4096  # elsewhere it should outweigh the launch of its kernels


class Contrast(NamedTuple):
    """loss: 0-d with gradient; accuracy: detached 0-d, share of anchors whose positive beats every negative.

    A tie counts as a miss, so a collapsed encoder has accuracy 0 and not, by rounding, anything.
    """

    loss: Tensor
    accuracy: Tensor


class _Own(NamedTuple):
    """Which columns are no negatives of a row: those of the same group of `size` when row 0 is column `first`.

    size 0: every column is a negative; 1: column first + i is row i's positive; 2: it is one view of a pair whose
    other view is its neighbour.
    """

    size: int
    first: int = 0


class _Normalize(torch.autograd.Function):
    """x · length · rsqrt(Σx² + ε) that keeps its result alone for backward, not the chain of its factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: float) -> Tensor:
        scale = length * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS)
        unit = x * scale
        ctx.save_for_backward(unit, scale)
        ctx.length = length
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, scale = ctx.saved_tensors
        along = (unit * grad).sum(-1, keepdim=True) / ctx.length**2
        return torch.addcmul(grad, unit, along, value=-1).mul_(scale), None


def normalize(x: Float[Tensor, "... d"], length: float = 1.0) -> Float[Tensor, "... d"]:
    """x / |x| times `length`, along the last dimension; a zero vector stays zero, with a finite gradient.

    Computed in float32, float64 in float64. It has no second derivative.
    """
    return _Normalize.apply(_at_least_float(x), length)


def _at_least_float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _tiles(rows: int, columns: int, size: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Tiles that cover a rows × columns matrix, or the upper triangle of a symmetric one."""
    for r in range(0, rows, size):
        for c in range(r if symmetric else 0, columns, size):
            yield slice(r, min(r + size, rows)), slice(c, min(c + size, columns))


def _logits(x: Tensor, y: Tensor, own: _Own, tile: tuple[slice, slice], out: Tensor) -> Tensor:
    """One tile of x yᵀ, -inf where the column is no negative of the row."""
    rows, columns = tile
    height, width = rows.stop - rows.start, columns.stop - columns.start
    logits = out[: height * width].view(height, width)
    torch.mm(x[rows], y[columns].T, out=logits)
    low = max(rows.start + own.first, columns.start)
    high = min(rows.stop + own.first, columns.stop)
    if own.size and low < high:
        r, c = low - own.first - rows.start, low - columns.start
        square = logits[r : r + high - low, c : c + high - low]
        square.unflatten(1, (-1, own.size)).unflatten(0, (-1, own.size)).diagonal(0, 0, 2).fill_(-torch.inf)
    return logits


class _NegativesLogSumExp(torch.autograd.Function):
    """Row-wise log-sum-exp and maximum of x yᵀ over each row's negatives; y None means x, and halves the work.

    `bounded` says that no logit exceeds _SAFE_LOGIT: then one exp per tile serves its rows and its columns. Otherwise
    each row (and column) is shifted by its own maximum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, own: _Own, bounded: bool) -> tuple[Tensor, Tensor]:
        symmetric, columns = y is None, x if y is None else y
        size = _TILE.get(x.device.type, _TILE_DEVICE)
        out = x.new_empty(min(size, len(x)) * min(size, len(columns)))
        top = x.new_full((len(x),), -torch.inf)
        total = torch.zeros_like(top) if bounded else top.clone()  # a sum of exp, or its logarithm
        for r, c in _tiles(len(x), len(columns), size, symmetric):
            logits = _logits(x, columns, own, (r, c), out)
            sides = [(r, 1), (c, 0)] if symmetric and r != c else [(r, 1)]
            for part, dim in sides:
                top[part] = torch.maximum(top[part], logits.amax(dim))
            if bounded:
                logits.exp_()
            for part, dim in sides:
                if bounded:
                    total[part] += logits.sum(dim)
                else:
                    total[part] = torch.logaddexp(total[part], logits.logsumexp(dim))
        lse = total.log() if bounded else total
        ctx.save_for_backward(x, y, lse, out if max(len(x), len(columns)) <= size else None)
        ctx.own, ctx.bounded, ctx.size = own, bounded, size
        ctx.mark_non_differentiable(top)
        return lse, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, y, lse, kept = ctx.saved_tensors
        symmetric, columns = y is None, x if y is None else y
        lse = lse.masked_fill(lse == -torch.inf, 0.0)  # a row without negatives: all its logits are -inf
        # Where exp(s) alone is safe, the shift by the log-sum-exp becomes a factor of the row.
        scale, shift = (grad * torch.exp(-lse), None) if ctx.bounded else (grad, lse)
        dx = torch.zeros_like(x)
        dy = dx if symmetric else torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        out = x.new_empty(min(ctx.size, len(x)) * min(ctx.size, len(columns))) if kept is None else kept.clone()
        with torch.autocast(x.device.type, enabled=False):
            for r, c in _tiles(len(x), len(columns), ctx.size, symmetric):
                if kept is None:
                    logits = _logits(x, columns, ctx.own, (r, c), out)
                    logits = logits.exp_() if ctx.bounded else logits
                else:
                    logits = out.view(len(x), len(columns))
                weight = _softmax_gradient(logits, scale, shift, (r, c), symmetric)
                dx[r].addmm_(weight, columns[c])
                if dy is not None and not (symmetric and r == c):
                    dy[c].addmm_(weight.T, x[r])
        return dx, None if symmetric else dy, None, None


def _softmax_gradient(
    logits: Tensor, scale: Tensor, shift: Tensor | None, tile: tuple[slice, slice], symmetric: bool
) -> Tensor:
    """Gradient of one tile of logits: scale_i exp(s_ij - shift_i), plus that of s_ji where the tile stands for both."""
    rows, columns = tile
    if shift is None:
        factor = scale[rows, None] + scale[None, columns] if symmetric else scale[rows, None]
        return logits.mul_(factor)
    weight = torch.sub(logits, shift[rows, None]).exp_().mul_(scale[rows, None])
    if symmetric:
        weight.addcmul_(logits.sub_(shift[None, columns]).exp_(), scale[None, columns])
    return weight


def _mises_fisher(cosine: Tensor, sigma: float) -> Tensor:
    """2 - exp(c / sigma) / mean of exp(c / sigma), as a difference of logarithms: sigma may be small."""
    everyone = gather(cosine)
    mean = (everyone / sigma).logsumexp(0) - log(len(everyone))
    return 2 - torch.exp(cosine / sigma - mean)


def _contrast(
    positive: Tensor,
    lse: Tensor,
    top: Tensor,
    margin: Tensor | float,
    decoupled: bool,
    weight: Tensor | float = 1.0,
) -> Contrast:
    """The mean loss over anchors, from their positive's logit and their negatives' log-sum-exp and maximum."""
    loss = lse - weight * positive if decoupled else -F.logsigmoid(positive - lse)
    return Contrast(loss.mean(), (positive.detach() - top > margin).to(loss.dtype).mean())


def _pairs(
    z1: Tensor, z2: Tensor, temperature: float, normalized: bool = True
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """The views [2N, D] in pairs, scaled so that their products are logits; those of all ranks, None if there is one alone;
    the logit [N] of each pair; the log-sum-exp and the maximum [2N] over the views of other samples, of all ranks."""
    rank, world = place()
    if z1.shape != z2.shape:
        raise ValueError(f"views of shape {tuple(z1.shape)} and {tuple(z2.shape)} are not pairs; give equal shapes")
    _check_temperature(temperature)
    # The views of a pair are neighbours: what is no negative of a row then stays beside the diagonal.
    z = torch.stack((z1, z2), 1)
    z = normalize(z, temperature**-0.5) if normalized else _at_least_float(z) * temperature**-0.5
    rows = z.flatten(0, 1)
    columns = gather(rows) if world > 1 else None
    bounded = normalized and 1 / temperature <= _SAFE_LOGIT
    lse, top = _NegativesLogSumExp.apply(rows, columns, _Own(2, rank * len(rows)), bounded)
    return rows, columns, (z[:, 0] * z[:, 1]).sum(-1), lse, top


def nt_xent(
    z1: Float[Tensor, "n d"],
    z2: Float[Tensor, "n d"],
    temperature: float,
    *,
    decoupled: bool = False,
    sigma: float | None = None,
    normalized: bool = True,
) -> Contrast:
    """NT-Xent of SimCLR (Chen et al. 2020, eq. 1): the mean over the 2N views of -log softmax of the other view.

    z1, z2: projections [N, D] of two views of the same N samples, row by row; they are normalised here, in float32
        (float64 stays float64), under autocast too.
    decoupled: leave the positive out of the denominator (DCL, Yeh et al. 2022, eq. 6). sigma: then weigh each positive by
        2 - exp(c / sigma) / mean of exp(c / sigma), c the cosine of a pair, over the pairs of all ranks (DCLW, section 3.2).
    normalized: False compares by dot products of the projections as they are.

    In a process group every rank's views are negatives (N equal on all ranks) and the mean is over this rank's own
    anchors: averaging gradients over ranks, as DDP does, gives the gradient of the whole batch in one process.
    At chance, when no view can be told from another, the loss is log(2N - 1) with N over all ranks.
    Raises ValueError for unequal shapes, a temperature not above 0, or one pair alone with decoupled.
    """
    if decoupled and len(z1) * place()[1] < 2:
        raise ValueError("a batch of 1 pair has no negatives, which the decoupled loss needs; use 2 pairs or more")
    with torch.autocast(z1.device.type, enabled=False):
        _, _, positive, lse, top = _pairs(z1, z2, temperature, normalized)
        weight = 1.0 if sigma is None else _mises_fisher(positive.detach() * temperature, sigma).repeat_interleave(2)
        return _contrast(positive.repeat_interleave(2), lse, top, _TIE / temperature, decoupled, weight)


def sup_con(
    z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], labels: Int[Tensor, " n"], temperature: float
) -> Contrast:
    """The supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out): the mean over the 2N views of the mean over a view's
    positives of -log softmax among all other views.

    z1, z2: as for `nt_xent`. labels: of the samples; a sample below 0 is of no class. The positives of a view are the other
        view of its sample and both views of each sample of its class. Without labels this is NT-Xent to the last bit.
    accuracy: as that of NT-Xent, the share of views that are nearer to the other view of their sample than to any other's,
        those of its class among them.

    In a process group as `nt_xent`: views and labels of all ranks.
    """
    with torch.autocast(z1.device.type, enabled=False):
        rows, columns, pair, lse, top = _pairs(z1, z2, temperature)
        pair = pair.repeat_interleave(2)
        views = (rows if columns is None else columns).unflatten(0, (-1, 2)).sum(1)
        labels = gather(labels)
        alone = -1 - torch.arange(len(labels), device=labels.device)
        labels = torch.where(labels < 0, alone, labels)  # each a class of its own
        group = torch.searchsorted(labels.sort().values, labels)  # an index of the class, the same for all its samples
        zeros = torch.zeros_like(views)
        # Bit for bit the same on each run: index_add of a card, and index_put of a CPU, add in no fixed order.
        sums = zeros.index_put((group,), views, accumulate=True) if zeros.is_cuda else zeros.index_add(0, group, views)
        sizes = torch.zeros_like(group).index_add(0, group, torch.ones_like(group))
        own = slice(place()[0] * len(z1), (place()[0] + 1) * len(z1))
        others = (sums[group] - views)[own].repeat_interleave(2, 0)  # what its class has beside the sample's own views
        more = 2 * sizes[group][own].repeat_interleave(2) - 2  # positives beside the other view
        found = _contrast(pair, lse, top, _TIE / temperature, decoupled=False)
        # The loss against the other view alone, and how much nearer that is than the mean of all positives.
        return found._replace(loss=found.loss + ((more * pair - (rows * others).sum(-1)) / (more + 1)).mean())


def info_nce(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "m d"],
    temperature: float | Float[Tensor, ""],
    negatives: Float[Tensor, "k d"] | None = None,
    gathered: bool = True,
    normalized: bool = True,
) -> Contrast:
    """InfoNCE (van den Oord et al. 2018, eq. 4) over cosine similarities: key[i] is the positive of query[i].

    negatives None: all other keys are negatives (CLIP, SimCSE), also those beyond row N (hard negatives), and in a
        process group those of every rank, as many on each. Given (the queue of MoCo): these [K, D] alone, on this rank
        alone. gathered: False leaves out those of other ranks.
    normalized: False compares by dot products of what is given.
    temperature: may be a learnable 0-d tensor.

    At chance the loss is log(1 + number of negatives). Everything is normalised here, in float32 or float64.
    Raises ValueError for fewer keys than queries or a temperature not above 0.
    """
    rank = place()[0] if gathered else 0
    if len(key) < len(query):
        raise ValueError(f"{len(key)} keys for {len(query)} queries; key[i] must be the positive of query[i]")
    bounded = False  # a tensor's value is not read: on a GPU that would wait for it
    if not isinstance(temperature, Tensor):
        _check_temperature(temperature)
        bounded = normalized and 1 / temperature <= _SAFE_LOGIT
    ready = normalize if normalized else _at_least_float
    with torch.autocast(query.device.type, enabled=False):
        rows, keys = ready(query) / temperature, ready(key)
        positive = (rows * keys[: len(rows)]).sum(-1)
        if negatives is not None:
            columns, own = ready(negatives), _Own(0)
        else:
            columns, own = (gather(keys) if gathered else keys), _Own(1, rank * len(keys))
        lse, top = _NegativesLogSumExp.apply(rows, columns, own, bounded)
        return _contrast(positive, lse, top, _TIE / temperature, decoupled=False)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0; use 0.05 to 1")
