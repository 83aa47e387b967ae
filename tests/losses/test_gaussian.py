"""SIGReg against the integral of its paper, in value and gradient, and against what a Gaussian must give."""

import math

import numpy as np
import pytest
import torch

from selftaught.losses.gaussian import sigreg


def unit(k: int, d: int) -> torch.Tensor:
    a = torch.randn(k, d, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    return a / a.norm(dim=1, keepdim=True)


def naive(z: torch.Tensor, directions: torch.Tensor, knots: int, reach: float) -> torch.Tensor:
    """Algorithm 1 on the symmetric grid that the one-sided one stands for, in complex numbers."""
    n, t = len(z), torch.linspace(-reach, reach, 2 * knots - 1, dtype=z.dtype)
    total = torch.zeros((), dtype=z.dtype)
    for a in directions:
        x = sum(z[:, i] * a[i] for i in range(len(a)))
        errors = []
        for s in t:
            mean = sum(torch.exp(1j * s * x[k]) for k in range(n)) / n
            errors.append((mean - torch.exp(-s * s / 2)).abs() ** 2 * torch.exp(-s * s / 2))
        total = total + n * torch.trapezoid(torch.stack(errors), t)
    return total / len(directions)


@pytest.mark.parametrize(("knots", "reach"), [(17, 3.0), (5, 5.0), (2, 1.0)])
def test_it_is_the_published_one(knots: int, reach: float) -> None:
    z = (0.5 + 2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).requires_grad_()
    found, wanted = sigreg(z, unit(4, 3), knots, reach), naive(z, unit(4, 3), knots, reach)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    gradients = (torch.autograd.grad(x, z)[0] for x in (found, wanted))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_views_are_tested_one_by_one() -> None:
    z = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    each = torch.stack([sigreg(v, unit(7, 5)) for v in z])
    assert sigreg(z, unit(7, 5)).item() == pytest.approx(each.mean().item(), rel=1e-12)


def test_a_gaussian_is_near_what_chance_allows_and_others_are_far() -> None:
    """A mean of n Gaussians' waves errs by (1 - exp(-t²)) / n in the mean square: a statistic that does not grow with n."""
    t = np.linspace(-3, 3, 33)
    expected = np.trapezoid((1 - np.exp(-(t**2))) * np.exp(-(t**2) / 2), t)
    z = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(3))
    directions = unit(64, 4).float()
    assert sigreg(z, directions).item() == pytest.approx(expected, rel=0.5)
    for wrong in (2 * z, z + 0.5, z * torch.tensor([1.0, 1, 1, 0]), z.sign()):
        assert sigreg(wrong, directions).item() > 20 * expected


def test_a_point_is_what_the_formula_says() -> None:
    """All at zero: n times the integral of (1 - exp(-t²/2))² exp(-t²/2), with no direction to leave by."""
    z = torch.zeros(50, 4, requires_grad=True)
    t = np.linspace(-3, 3, 33)
    loss = sigreg(z, unit(9, 4).float())
    assert loss.item() == pytest.approx(
        50 * np.trapezoid((1 - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2), t), rel=1e-5
    )
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros_like(z))


def test_waves_keep_float32_over_many_knots() -> None:
    """They follow from one another by recurrence: its rounding stays far below the statistic."""
    z = 4 * torch.randn(64, 8, generator=torch.Generator().manual_seed(4))
    single, double = (sigreg(x, unit(32, 8).to(x), 65, 6.0).item() for x in (z, z.double()))
    assert single == pytest.approx(double, rel=1e-5)
    assert math.isfinite(single)
