import math

import pytest
import torch
import torch.nn.functional as F

from selftaught.errors import UserError
from selftaught.evaluation import health
from selftaught.evaluation.health import alignment, measure, rankme, spread, uniformity


def features(n=200, d=32, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "d"), [(100, 20), (20, 100)])
def test_rankme_is_the_formula(n, d):
    x = features(n, d)
    s = torch.linalg.svdvals(x.double())
    p = s / s.sum() + 1e-7
    assert rankme(x) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)


def test_rankme_counts_equal_directions():
    assert rankme(torch.eye(8)) == pytest.approx(8, rel=1e-4)
    assert rankme(torch.ones(50, 8)) == pytest.approx(1, abs=1e-3)
    line = torch.linspace(-1, 1, 50)[:, None] * torch.ones(1, 8)
    assert rankme(line) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(5, 3)) == 1.0


def test_spread_is_one_on_the_sphere_and_zero_at_a_point():
    assert spread(features(5000)) == pytest.approx(1, abs=0.02)
    assert spread(3 * torch.ones(10, 4) * torch.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-6)
    assert spread(features() + 100) < 0.05


def test_alignment_and_uniformity_are_the_papers_code(monkeypatch):
    """Wang & Isola 2020, figure 5, written with pdist."""
    x, y = features(), features(seed=1)
    u, v = F.normalize(x.double(), dim=1), F.normalize(y.double(), dim=1)
    assert alignment(x, y) == pytest.approx(float((u - v).norm(dim=1).pow(2).mean()))
    expected = float(torch.pdist(u).pow(2).mul(-2).exp().mean().log())
    assert uniformity(x) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(health, "_CHUNK", 200 * 7)
    assert uniformity(x) == pytest.approx(expected, rel=1e-9)
    assert alignment(x, 5 * x) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def test_measure_gathers_all_and_notes_the_size():
    x = features()
    row = measure(x, step=25, second=x, knn=0.5)
    assert (row.step, row.knn, row.width, row.samples) == (25, 0.5, 32, 200)
    assert (row.rank, row.std, row.alignment) == (rankme(x), spread(x), 0.0)
    assert measure(x, step=0).alignment is None


def test_broken_features_are_measured_as_nan_and_one_sample_is_refused():
    x = features()
    x[3, 3] = torch.inf
    assert math.isnan(measure(x, step=0).rank)
    with pytest.raises(UserError, match="1 sample"):
        measure(features(1), step=0)
