"""SIGReg: how far embeddings are from an isotropic Gaussian, seen along random directions (Balestriero & LeCun 2025)."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from selftaught.ranks import gather, place


class _Waves(torch.autograd.Function):
    """Means over the rows of x [..., n, k] of cos(j step x) and sin(j step x), each [count, ..., k], for j = 1 ... count.

    Wave j follows from wave j - 1 by the addition theorems: two transcendental functions serve them all, and only x is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, count: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.step, ctx.count = step, count
        cos, sin = zip(*((c.mean(-2), s.mean(-2)) for c, s in _waves(x, step, count)), strict=True)
        return torch.stack(cos), torch.stack(sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        total = torch.zeros_like(x)
        for j, (c, s) in enumerate(_waves(x, ctx.step, ctx.count)):
            cos, sin = (grad[j].unsqueeze(-2) * ((j + 1) * ctx.step / x.shape[-2]) for grad in grads)
            total.addcmul_(c, sin).addcmul_(s, cos, value=-1)
        return total, None, None


def _waves(x: Tensor, step: float, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    first = torch.cos(step * x), torch.sin(step * x)
    c, s = first
    for j in range(count):
        if j:
            c, s = c * first[0] - s * first[1], s * first[0] + c * first[1]
        yield c, s


def sigreg(
    z: Float[Tensor, "*v n d"], directions: Float[Tensor, "k d"], knots: int = 17, reach: float = 3.0
) -> Float[Tensor, ""]:
    """The mean over `directions` (unit vectors) and views of Epps and Pulley's statistic (the paper's algorithm 1),

        n ∫ |mean_i exp(i t x_i) - exp(-t²/2)|² exp(-t²/2) dt,    x_i = z_i · direction,

    from -reach to reach. The integrand is even: it is taken at `knots` equal steps from 0 to reach, as in the authors' code,
    by the trapezoidal rule, and doubled. n counts the rows of all ranks. In float32 (float64 stays float64). Every rank must
    give the same directions.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        step, count = reach / (knots - 1), knots - 1  # at t = 0 both functions are 1
        means = torch.stack(_Waves.apply(z @ directions.to(z).T, step, count))
        cos, sin = gather(means[None]).mean(0)
        t = step * torch.arange(1, knots, device=z.device, dtype=z.dtype)
        normal = torch.exp(-t.square() / 2)
        weight = 2 * step * normal
        weight[-1] /= 2
        along = (1,) * (cos.ndim - 1)
        error = (cos - normal.view(-1, *along)).square() + sin.square()
        return (error * weight.view(-1, *along)).sum(0).mean() * (z.shape[-2] * place()[1])
