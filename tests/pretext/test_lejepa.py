"""LeJEPA: its loss on its own views, its directions, and its collapse where SIGReg weighs nothing."""

import dataclasses

import pytest
import torch

from selftaught.errors import UserError
from selftaught.losses.gaussian import sigreg
from selftaught.pretext.lejepa import LeJEPA
from tests.contracts.conftest import batch_of, make
from tests.pretext.watched import VIEW, projections, watched


def small(**settings: object) -> LeJEPA:
    task = make("lejepa", **{"hidden": 128, "out": 32, "slices": 64, "local": 2, **settings})
    assert isinstance(task, LeJEPA)
    return task


@pytest.mark.parametrize("local", [0, 2])
def test_loss_is_the_published_one(local: int) -> None:
    task, batch = small(local=local, weight=0.3).eval(), batch_of("lejepa", 8)
    views = task.drawn(batch)
    assert len(views) == 2 + local
    z = torch.stack([task.head(task.encoder(v).pooled) for v in views]).double()
    prediction = torch.zeros((), dtype=torch.float64)
    for k in range(8):
        centre = (z[0, k] + z[1, k]) / 2
        for v in range(2 + local):
            prediction = prediction + ((centre - z[v, k]) ** 2).mean() / (8 * (2 + local))
    gaussian = sum(sigreg(v, task.directions(batch).double()) for v in z) / len(z)
    expected = 0.7 * prediction + 0.3 * gaussian
    loss, metrics = task(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["prediction"].item() == pytest.approx(prediction.item(), rel=1e-4)
    weights = list(task.parameters())
    for a, b in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_directions_are_a_function_of_seed_and_step_and_uniform_on_the_sphere() -> None:
    task, batch = small(slices=4000, out=8), batch_of("lejepa", 8)
    a = task.directions(batch)
    part = dataclasses.replace(batch, index=batch.index[4:])
    assert torch.equal(a, task.directions(part))  # so every rank has them
    for other in (dataclasses.replace(batch, step=6), dataclasses.replace(batch, seed=4)):
        assert not torch.equal(a, task.directions(other))
    torch.testing.assert_close(a.norm(dim=1), torch.ones(4000))
    torch.testing.assert_close(a.mean(0), torch.zeros(8), rtol=0, atol=4 * (1 / 8 / 4000) ** 0.5)
    torch.testing.assert_close(a.T @ a / 4000, torch.eye(8) / 8, rtol=0, atol=0.01)
    assert a.pow(4).mean().item() == pytest.approx(3 / (8 * 10), rel=0.05)  # of a uniform direction: 3 / (d (d + 2))


def test_all_views_have_the_same_colours() -> None:
    task = small()
    one, two = task.views
    local = task.local_view
    assert one == two
    same = ("jitter", "brightness", "contrast", "saturation", "hue", "greyscale", "blur", "solarise")
    assert all(getattr(one, name) == getattr(local, name) for name in same)
    assert (one.solarise, one.crop_scale, local.crop_scale) == (0.2, (0.3, 1.0), (0.05, 0.3))


def test_the_papers_are_the_defaults() -> None:
    c = LeJEPA.Config()
    assert (c.weight, c.slices, c.knots, c.local) == (0.05, 1024, 17, 6)


@pytest.mark.parametrize("settings", [{"weight": 1.5}, {"weight": -0.1}, {"slices": 0}, {"knots": 1}, {"reach": 0.0}])
def test_what_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        LeJEPA.Config(**settings)  # type: ignore[arg-type]


def test_without_sigreg_it_shrinks_to_a_point() -> None:
    deviation = {}
    for weight in (0.05, 0.0):
        task = small(weight=weight, view=VIEW)
        watched(task, 60, batch=64, lr=2e-3)
        deviation[weight] = projections(task.eval()).std(0).mean().item()
    assert deviation[0.05] > 0.4  # 1 is a standard Gaussian's
    assert deviation[0.0] < deviation[0.05] / 5
