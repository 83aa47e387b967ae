"""The losses on statistics of a batch against their formulas in loops, in value and gradient."""

import inspect
import math

import pytest
import torch

from selftaught.losses.decorrelation import barlow_twins, vicreg

SHAPES = [(6, 4), (4, 9), (5, 5), (7, 1)]  # more samples than dimensions, fewer, as many, one dimension


def views(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n * 100 + d)
    one = 1 + 2 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    two = one + 0.7 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return one.requires_grad_(), two.requires_grad_()


def naive_barlow(z1: torch.Tensor, z2: torch.Tensor, weight: float) -> torch.Tensor:
    n, d = z1.shape
    total = torch.zeros((), dtype=z1.dtype)
    for i in range(d):
        for j in range(d):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            sizes = [((x**2).sum() / n + 1e-5).sqrt() for x in (a, b)]
            c = sum(a[k] * b[k] for k in range(n)) / n / sizes[0] / sizes[1]
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


def naive_vicreg(z1: torch.Tensor, z2: torch.Tensor, weights: tuple[float, float, float], gamma: float) -> torch.Tensor:
    n, d = z1.shape
    invariance = sum((z1[k, i] - z2[k, i]) ** 2 for k in range(n) for i in range(d)) / (n * d)
    variance, covariance = torch.zeros((), dtype=z1.dtype), torch.zeros((), dtype=z1.dtype)
    for z in (z1, z2):
        for i in range(d):
            for j in range(d):
                products = (z[:, i] - z[:, i].mean()) * (z[:, j] - z[:, j].mean())
                cov = products.sum() / (n - 1)
                if i == j:
                    variance = variance + torch.clamp(gamma - (cov + 1e-4).sqrt(), min=0) / (2 * d)
                else:
                    covariance = covariance + cov**2 / d
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", [0.0051, 0.0, 2.0])
def test_barlow_twins_is_the_published_one(shape, weight):
    pair = views(*shape)
    loss = barlow_twins(*pair, weight).loss
    expected = naive_barlow(*pair, weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for found, wanted in zip(torch.autograd.grad(loss, pair), torch.autograd.grad(expected, pair), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_vicreg_is_the_published_one(shape, gamma):
    pair, weights = views(*shape), (25.0, 7.0, 1.5)
    loss = vicreg(*pair, invariance=25.0, variance=7.0, covariance=1.5, gamma=gamma).loss
    expected = naive_vicreg(*pair, weights, gamma)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for found, wanted in zip(torch.autograd.grad(loss, pair), torch.autograd.grad(expected, pair), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_their_figures_are_what_they_are_called():
    one, two = views(8, 3)
    found = barlow_twins(one, two, 1.0)
    both = torch.corrcoef(torch.cat([one, two], 1).T)[:3, 3:]
    assert found.same.item() == pytest.approx(both.diagonal().mean().item(), rel=1e-4)
    assert found.other.item() == pytest.approx(
        (both.square().sum() - both.diagonal().square().sum()).item() / 6, rel=1e-4
    )
    terms = vicreg(one, two, invariance=2.0, variance=3.0, covariance=5.0)
    weighed = 2 * terms.invariance + 3 * terms.variance + 5 * terms.covariance
    assert terms.loss.item() == pytest.approx(weighed.item())


def test_a_point_has_finite_loss_and_gradient():
    """What a collapsed encoder gives: no dimension correlates, none varies."""
    point = torch.ones(6, 4, requires_grad=True)
    barlow = barlow_twins(point, point, 0.0051).loss
    assert barlow.item() == pytest.approx(4)
    loss = vicreg(point, point, invariance=25, variance=25, covariance=1).loss
    assert loss.item() == pytest.approx(25 * (1 - math.sqrt(1e-4)))
    for x in (barlow, loss):
        assert torch.isfinite(torch.autograd.grad(x, point)[0]).all()


def test_they_stay_in_float32_under_autocast():
    pair = [x.detach().float() for x in views(16, 40)]
    plain = barlow_twins(*pair, 0.1).loss, vicreg(*pair, invariance=25, variance=25, covariance=1).loss
    with torch.autocast("cpu", torch.bfloat16):
        low = barlow_twins(*pair, 0.1).loss, vicreg(*pair, invariance=25, variance=25, covariance=1).loss
    assert all(torch.equal(a, b) for a, b in zip(plain, low, strict=True))


@pytest.mark.parametrize(("shapes", "words"), [(((3, 2), (4, 2)), "not pairs"), (((1, 2), (1, 2)), "no variance")])
def test_what_is_refused(shapes, words):
    one, two = (torch.ones(shape) for shape in shapes)
    bare_barlow_twins, bare_vicreg = (
        inspect.unwrap(barlow_twins),
        inspect.unwrap(vicreg),
    )  # without the shape checks of tests
    with pytest.raises(ValueError, match=words):
        bare_barlow_twins(one, two, 0.1)
    with pytest.raises(ValueError, match=words):
        bare_vicreg(one, two, invariance=1, variance=1, covariance=1)
