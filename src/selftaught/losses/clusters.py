"""Soft and hard assignments to prototypes: balanced codes, cross-entropy against them over crops, k-means on the sphere."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from selftaught.losses.contrastive import normalize
from selftaught.ranks import gather, place

_NEAR = 1e-8  # distance below which features count as equal
_ROWS = 8192  # rows that k-means compares with all centroids at once


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "n k"],
    epsilon: float = 0.05,
    iterations: int = 3,
    counted: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, "n k"]:
    """Codes by Sinkhorn and Knopp's algorithm (SwAV, Caron et al. 2020, eq. 3-5): exp(scores / epsilon), whose prototypes are
    brought to equal sums over the samples of all ranks and whose samples to sum 1, in turns; samples are last.

    counted: which rows take part in the prototypes' sums; the others get codes from what these come to. None: all.

    In logarithms, so nothing overflows, and no prototype's sum is ever 0. In float32 or float64, without gradient.
    """
    with torch.autocast(scores.device.type, enabled=False):
        logs = (scores if scores.dtype == torch.float64 else scores.float()) / epsilon
        for _ in range(iterations):
            summed = logs if counted is None else logs.masked_fill(~counted[:, None], -torch.inf)
            logs = logs - gather(summed.logsumexp(0, keepdim=True)).logsumexp(0)
            logs = logs.log_softmax(1)
        return logs.softmax(1)


def soft_cross_entropy(logits: Float[Tensor, "*n k"], target: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """-sum of target · log softmax(logits) of each row, in float32 or float64."""
    return -(target * logits.log_softmax(-1)).sum(-1)


def across_views(logits: Float[Tensor, "v n k"], target: Float[Tensor, "t n k"]) -> Float[Tensor, ""]:
    """The mean cross-entropy of what view v predicts against the target that view t gives, over all pairs v ≠ t.

    The first T of the V views are those of the targets: SwAV's swapped prediction and DINO's loss over crops.
    """
    views, teachers = len(logits), len(target)
    total = target.sum(0, keepdim=True)  # each view is predicted by all others, so its targets add up
    others = torch.cat([total - target, total.expand(views - teachers, -1, -1)])
    return soft_cross_entropy(logits, others).mean() * (views / (teachers * (views - 1)))


def used(codes: Float[Tensor, "*n k"]) -> Float[Tensor, ""]:
    """Perplexity of the mean code, detached: how many prototypes are in use, 1 to K."""
    mean = codes.detach().flatten(0, -2).mean(0)
    return torch.special.entr(mean).sum().exp()


@torch.no_grad()
def spherical_kmeans(
    rows: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], iterations: int
) -> tuple[Float[Tensor, "k d"], Int[Tensor, " n"]]:
    """k-means by cosine from the given centroids (DeepCluster-v2): unit centroids, and the nearest one of each row.

    rows, centroids: unit vectors, at least as many rows as centroids. A centroid that lost all its rows moves to the row
    that is furthest from its own (the second to the next, and so on): otherwise it would stay empty for ever.
    """
    for _ in range(iterations):
        nearest, cosine = _nearest(rows, centroids)
        counts = torch.bincount(nearest, minlength=len(centroids))
        grouped = rows[nearest.argsort(stable=True)]
        sums = torch.segment_reduce(grouped, "sum", lengths=counts, initial=0.0)  # adds in a fixed order, on GPUs too
        empty = counts == 0
        furthest = cosine.argsort(stable=True)[: len(centroids)]
        spare = rows[furthest[(empty.cumsum(0) - 1).clamp_min(0)]]
        centroids = F.normalize(torch.where(empty[:, None], spare, sums), dim=1)
    return centroids, _nearest(rows, centroids)[0]


def _nearest(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    found = [(part @ centroids.T).max(1) for part in rows.split(_ROWS)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def koleo(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """KoLeo (Sablayrolles et al. 2019, eq. 2): minus the mean log distance of a feature to its nearest neighbour.

    Features are normalised here, in float32 or float64, and neighbours sought among those of all ranks; the mean is over
    this rank's own. Spreads features evenly: the estimate of Kozachenko and Leonenko of their entropy.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = normalize(x)
        everyone = gather(unit)
        with torch.no_grad():
            cosine = unit @ everyone.T
            cosine.diagonal(place()[0] * len(unit)).fill_(-2)
            nearest = cosine.argmax(1)
        squared = (unit - everyone[nearest]).square().sum(1)
        return -0.5 * (squared + _NEAR**2).log().mean()
