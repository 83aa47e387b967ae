"""Health of a representation, measured without labels: effective rank, spread, alignment, uniformity."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from selftaught.errors import UserError
from selftaught.evaluation.threads import one_thread

_EPS = 1e-7  # RankMe's, for float32 features
_CHUNK = 1 << 24


@dataclass(frozen=True)
class HealthRow:
    """What is measured every few steps on a fixed set of samples.

    rank: RankMe, in 1 ... min(samples, width). std: see `spread`, 0 is collapse, 1 is healthy. alignment, uniformity:
    Wang & Isola's. knn: accuracy in 0 ... 1 where labels exist. width, samples: the size of what was measured.
    """

    step: int
    rank: float
    std: float
    alignment: float | None = None
    uniformity: float | None = None
    knn: float | None = None
    width: int | None = None
    samples: int | None = None


def measure(
    features: Float[Tensor, "n d"],
    *,
    step: int,
    second: Float[Tensor, "n d"] | None = None,
    knn: float | None = None,
) -> HealthRow:
    """Health of the features of a fixed set of samples; `second` are the features of another view of each of them.

    Non-finite features give NaN figures, which `watch.diagnose` names. A thousand samples of width 512 take about
    0.2 s on one core.
    """
    n, d = features.shape
    if n < 2:
        raise UserError(f"health is measured on {n} sample, it needs at least 2; use 512 or more")
    with one_thread(features.numel()):
        align = None if second is None else alignment(features, second)
        return HealthRow(step, rankme(features), spread(features), align, uniformity(features), knn, d, n)


def rankme(features: Float[Tensor, "n d"]) -> float:
    """Effective rank, 1 ... min(n, d) (Garrido et al. 2023, "RankMe", eq. 1).

    exp(-sum p log p) with p = s / sum(s) + 1e-7 over the singular values s of the uncentred features: how many
    directions carry them. Not centred, so features that share a large mean (random ReLU networks do) start low.
    """
    x = features.double()
    if not torch.isfinite(x).all():
        return float("nan")
    # The eigenvalues of the smaller Gram matrix in float64: ten times faster than an SVD, and exact beyond _EPS.
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = s.sum()
    if total == 0:
        return 1.0
    p = s / total + _EPS
    return float((-(p * p.log()).sum()).exp())


def spread(features: Float[Tensor, "n d"]) -> float:
    """Standard deviation of the normalised features, averaged over dimensions, times sqrt(d) (Chen & He 2021, 4.1).

    0 where all samples have one direction, 1 where the directions are uniform on the sphere (SimSiam plots it without
    the factor, as 1/sqrt(d)).
    """
    z = _unit(features)
    return float(z.std(0, correction=0).mean() * z.shape[1] ** 0.5)


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> float:
    """Mean squared distance of the normalised features of two views (Wang & Isola 2020, alpha = 2): 0 is perfect."""
    return float((_unit(first) - _unit(second)).square().sum(1).mean())


def uniformity(features: Float[Tensor, "n d"]) -> float:
    """log mean exp(-2 |x - y|^2) over distinct pairs of normalised features (Wang & Isola 2020, t = 2).

    0 where all are one point; about -4 where they are uniform on a sphere of many dimensions.
    """
    z = _unit(features)
    n = len(z)
    total = 0.0
    for rows in z.split(max(1, _CHUNK // n)):
        total += float((4 * (rows @ z.T) - 4).exp().sum(dtype=torch.float64))  # |x - y|^2 = 2 - 2 x.y
    # Each row met itself once, at distance 0 but for rounding: take those pairs out as they were counted.
    itself = float((4 * z.square().sum(1) - 4).exp().sum(dtype=torch.float64))
    return float(torch.tensor(max(total - itself, 1e-300) / (n * (n - 1)), dtype=torch.float64).log())


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)
