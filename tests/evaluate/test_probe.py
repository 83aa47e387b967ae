import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from selftaught.errors import UserError
from selftaught.evaluation import probe as module
from selftaught.evaluation.probe import SINGLE, fit_probe, linear_probe, ridge_probe


def problem(n, d, classes=4, noise=3.0, seed=0):
    """Correlated features on unlike scales, labels that they only partly explain."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator)
    x = x * torch.logspace(-2, 2, d) + 5
    signal = (x - x.mean(0)) / x.std(0) @ torch.randn(d, classes, generator=generator)
    return x, (signal + noise * torch.randn(n, classes, generator=generator)).argmax(1)


def standardised(x, by):
    return ((x - by.mean(0)) / by.std(0, correction=0)).double().numpy()


def centred(scores):
    """Softmax scores are defined up to a constant per row."""
    return scores - scores.mean(1, keepdims=True)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize(("n", "d"), [(200, 12), (30, 80)])
def test_reaches_sklearns_optimum(n, d, l2, double, monkeypatch):
    if not double:
        monkeypatch.setattr(module, "_DOUBLE", 0)
    x, y = problem(n + 50, d)
    train, labels, test = x[:n], y[:n], x[n:]
    model = LogisticRegression(C=1 / (n * l2), tol=1e-10, max_iter=20000)
    expected = model.fit(standardised(train, train), labels).decision_function(standardised(test, train))
    found = centred(fit_probe(train, labels, l2).scores(test).double().numpy())
    np.testing.assert_allclose(found, centred(expected), atol=(1e-3 if double else 3e-2) * np.abs(expected).max())


@pytest.mark.parametrize(("n", "d"), [(200, 12), (30, 80)])
def test_ridge_is_the_closed_form(n, d):
    x, y = problem(n + 50, d)
    model = RidgeClassifier(alpha=n * 0.01, tol=1e-12).fit(standardised(x[:n], x[:n]), y[:n])
    expected = model.decision_function(standardised(x[n:], x[:n]))
    scores = ridge_probe(x[:n], y[:n], l2=0.01).scores(x[n:])
    np.testing.assert_allclose(2 * scores.double().numpy() - 1, expected, atol=1e-5)  # sklearn's targets are -1, 1


def test_scale_shift_and_constant_columns_do_not_matter():
    x, y = problem(120, 6)
    x = x.double()
    moved = torch.cat([x * torch.tensor([1e-3, 1, 10, 1e3, 2, 5]) - 7, torch.full((120, 1), 0.3)], dim=1)
    p, q = linear_probe(x, y), linear_probe(moved, y)
    assert p.l2 == q.l2
    assert torch.allclose(p.scores(x), q.scores(moved), atol=1e-3)


def test_chooses_strong_regularisation_for_noise_and_weak_for_signal():
    x, y = problem(400, 40, noise=0.0)
    assert linear_probe(x, y).l2 <= 1e-3
    few, target = problem(60, 60, noise=40.0)
    assert linear_probe(few, target).l2 >= 0.1


def test_the_chosen_strength_is_near_the_best_on_test_samples():
    x, y = problem(1300, 50, noise=8.0)
    for n in (40, 300):
        grid = [
            float((fit_probe(x[:n], y[:n], s).predict(x[300:]) == y[300:]).float().mean()) for s in module.STRENGTHS
        ]
        chosen = float((linear_probe(x[:n], y[:n]).predict(x[300:]) == y[300:]).float().mean())
        assert chosen > max(grid) - 0.04
        assert chosen > min(grid)


def test_held_out_parts_are_stratified_and_cover_each_sample_once():
    target = torch.tensor([0] * 50 + [1] * 10 + [2] * 3 + [3])
    folds = torch.stack(list(module._held_out(target, seed=1)))
    assert folds.shape[0] == 5
    assert folds.sum(0).tolist() == [1] * 63 + [0]  # the class with one label is always fitted
    assert folds[:, :50].sum(1).tolist() == [10] * 5
    assert folds[:, 50:60].sum(1).tolist() == [2] * 5
    single = list(module._held_out(torch.arange(2000) % 4, seed=1))
    assert [int(held.sum()) for held in single] == [400]


def test_one_label_per_class_still_works():
    x = torch.eye(5) + 0.01 * torch.arange(25.0).view(5, 5)
    found = linear_probe(x, torch.arange(5) * 10)
    assert found.l2 == SINGLE
    assert found.predict(x).tolist() == [0, 10, 20, 30, 40]


def test_same_seed_same_probe_and_threads_are_given_back():
    x, y = problem(150, 20)
    before = torch.get_num_threads()
    a, b = linear_probe(x, y, seed=3), linear_probe(x, y, seed=3)
    assert torch.equal(a.weight, b.weight)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("fit", [linear_probe, ridge_probe])
def test_refuses_one_class_and_unlabelled_rows(fit):
    with pytest.raises(UserError, match="hold 1 class"):
        fit(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
