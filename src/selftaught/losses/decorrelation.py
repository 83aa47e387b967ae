"""Losses on the statistics of a batch of pairs: Barlow Twins and VICReg. Statistics are those of all ranks' rows.

The matrix they speak of, correlations or covariances, has d x d entries, but of what lies beside its diagonal only the sum of
squares is asked: |a'b|² = <aa', bb'>. So the smaller of d x d and n x n is made, and a wide projector costs no more than its
layers.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from selftaught.ranks import gather

_EPS = 1e-5  # BatchNorm's, which the authors of Barlow Twins standardise with


class BarlowTwins(NamedTuple):
    """loss: 0-d with gradient. same, other: detached means, of the correlations of a dimension with itself in the other view,
    and of the squares of those with other dimensions."""

    loss: Tensor
    same: Tensor
    other: Tensor


class VICReg(NamedTuple):
    """loss: 0-d with gradient. invariance, variance, covariance: its detached terms, before they are weighed."""

    loss: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def barlow_twins(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], off_diagonal: float) -> BarlowTwins:
    """Σ_i (1 - c_ii)² + off_diagonal Σ_{i≠j} c_ij² (Zbontar et al. 2021, eq. 1), c_ij the correlation over the batch of
    dimension i in the first view with dimension j in the second.

    Standardised with the variance over n, in float32. Raises ValueError for unequal shapes or a single pair.
    """
    with torch.autocast(z1.device.type, enabled=False):
        a, b = (_centred(z) for z in _pairs(z1, z2))
        a, b = (z * torch.rsqrt(z.square().mean(0) + _EPS) for z in (a, b))
        n, d = a.shape
        same = (a * b).sum(0) / n
        other = _squares(a, b) / n**2 - same.square().sum()
        loss = (1 - same).square().sum() + off_diagonal * other
        return BarlowTwins(loss, same.detach().mean(), other.detach() / max(1, d * (d - 1)))


def vicreg(
    z1: Float[Tensor, "n d"],
    z2: Float[Tensor, "n d"],
    *,
    invariance: float,
    variance: float,
    covariance: float,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> VICReg:
    """The sum of three weighed terms (Bardes et al. 2022, section 4.1, in the scale of the authors' code, which the published
    weights belong to): mean squared difference of the views; mean over views and dimensions of max(0, gamma - sqrt(var +
    eps)); sum over views of Σ_{i≠j} cov_ij² / d. Variances and covariances are over n - 1.

    Computed in float32. Raises ValueError for unequal shapes or a single pair.
    """
    with torch.autocast(z1.device.type, enabled=False):
        pair = _pairs(z1, z2)
        apart, (n, d) = F.mse_loss(*pair), pair[0].shape
        hinge = spread = pair[0].new_zeros(())
        for z in map(_centred, pair):
            var = z.square().sum(0) / (n - 1)
            hinge = hinge + F.relu(gamma - (var + eps).sqrt()).mean() / 2
            spread = spread + (_squares(z, z) / (n - 1) ** 2 - var.square().sum()) / d
        loss = invariance * apart + variance * hinge + covariance * spread
        return VICReg(loss, apart.detach(), hinge.detach(), spread.detach())


def _pairs(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """All ranks' rows of both views, in float32 or float64."""
    if z1.shape != z2.shape:
        raise ValueError(f"views of shape {tuple(z1.shape)} and {tuple(z2.shape)} are not pairs; give equal shapes")
    one, two = (gather(z if z.dtype == torch.float64 else z.float()) for z in (z1, z2))
    if len(one) < 2:
        raise ValueError("a batch of 1 pair has no variance; use 2 pairs or more")
    return one, two


def _centred(z: Tensor) -> Tensor:
    return z - z.mean(0)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the squares of a'b [d, d]."""
    if a.shape[1] <= len(a):
        return (a.T @ b).square().sum()
    one = a @ a.T
    return (one * (one if b is a else b @ b.T)).sum()
