"""Barlow Twins and VICReg as tasks: what they feed their losses, and what becomes of each without the term that guards it."""

import pytest
import torch

from selftaught.errors import UserError
from selftaught.evaluation.health import rankme
from selftaught.losses.decorrelation import barlow_twins, vicreg
from selftaught.pretext.barlow_twins import BarlowTwins
from selftaught.pretext.vicreg import VICReg
from tests.contracts.conftest import batch_of, make
from tests.pretext.watched import VIEW, projections, watched


def test_what_is_compared_is_the_projection_of_both_views() -> None:
    batch = batch_of("vicreg", 12)
    for name in ("barlow_twins", "vicreg"):
        task = make(name, hidden=64, out=32).eval()
        z = [task.head(task.encoder(v).pooled) for v in task.drawn(batch)]
        expected = (
            barlow_twins(*z, 0.0051).loss
            if name == "barlow_twins"
            else vicreg(*z, invariance=25.0, variance=25.0, covariance=1.0).loss
        )
        assert task(batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert [view.solarise for view in task.views] == [0.0, 0.2]
        assert task.head[-1].bias is None


def test_the_papers_are_the_defaults() -> None:
    c = BarlowTwins.Config()
    assert (c.hidden, c.out, c.layers, c.off_diagonal) == (8192, 8192, 3, 0.0051)
    v = VICReg.Config()
    assert (v.hidden, v.out, v.layers) == (8192, 8192, 3)
    assert (v.invariance, v.variance, v.covariance, v.gamma, v.eps) == (25.0, 25.0, 1.0, 1.0, 1e-4)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (BarlowTwins.Config, {"off_diagonal": -0.1}),
        (VICReg.Config, {"variance": -1.0}),
        (VICReg.Config, {"covariance": float("nan")}),
        (VICReg.Config, {"gamma": 0.0}),
        (VICReg.Config, {"eps": 0.0}),
    ],
)
def test_what_is_refused(config, settings) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        config(**settings)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_a_batch_of_one_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="batch of 1"):
        make(name, hidden=64, out=32)(batch_of(name, 1))


def test_barlow_twins_without_off_diagonal_becomes_redundant() -> None:
    rank, redundancy = {}, {}
    for weight in (0.0051, 0.0):
        task = make("barlow_twins", view=VIEW, off_diagonal=weight, hidden=128, out=256)
        watched(task, 50, batch=128, name="sgd", lr=0.002)
        z = projections(task.eval())
        rank[weight] = rankme(z)
        c = torch.corrcoef(z.double().T).nan_to_num()
        redundancy[weight] = (c.square().sum() - c.diagonal().square().sum()).item() / (256 * 255)
    assert rank[0.0] < rank[0.0051] / 2
    assert redundancy[0.0] > 0.7
    assert redundancy[0.0051] < 0.5


def test_vicreg_without_variance_shrinks_to_a_point() -> None:
    deviation = {}
    for weight in (25.0, 0.0):
        task = make("vicreg", view=VIEW, variance=weight, hidden=128, out=128)
        watched(task, 60, batch=64, lr=2e-3)
        deviation[weight] = projections(task.eval()).std(0).mean().item()
    assert deviation[25.0] > 0.3
    assert deviation[0.0] < deviation[25.0] / 5
