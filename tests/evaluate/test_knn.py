import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selftaught.errors import UserError
from selftaught.evaluation import knn as module
from selftaught.evaluation.knn import choose_k, knn


def naive(train, labels, test, k, temperature):
    """The formula of Wu et al., one test row at a time."""
    result = []
    for x in test:
        similarity = [float(F.cosine_similarity(x, y, dim=0)) for y in train]
        near = np.argsort(similarity)[::-1][:k]
        votes = {}
        for i in near:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + np.exp(similarity[i] / temperature)
        result.append(max(votes, key=lambda c: votes[c]))
    return torch.tensor(result)


@pytest.mark.parametrize("k", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_formula_whatever_the_chunk(k, temperature, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (60,), generator=generator) * 3 + 2  # labels need not be 0, 1, 2 ...
    train = torch.randn(60, 5, generator=generator) + F.one_hot(labels % 5, 5)
    test = torch.randn(31, 5, generator=generator)
    expected = naive(train, labels, test, min(k, 60), temperature)
    assert torch.equal(knn(train, labels, test, k=k, temperature=temperature), expected)
    monkeypatch.setattr(module, "_CHUNK", 60 * 4)
    assert torch.equal(knn(train, labels, test, k=k, temperature=temperature), expected)


def test_a_small_temperature_does_not_overflow():
    train, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn(train, labels, torch.eye(3), temperature=1e-3).tolist() == [0, 1, 2]


def test_choose_k_is_local_where_classes_are_local_and_wide_where_they_are_noise():
    generator = torch.Generator().manual_seed(0)
    angle = torch.linspace(0, 2 * torch.pi, 241)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    stripes = torch.arange(240) // 8 % 2
    assert choose_k(circle, stripes) <= 10
    noisy = torch.where(
        torch.rand(240, generator=generator) < 0.6, torch.arange(240) // 120, torch.arange(240) // 120 ^ 1
    )
    assert choose_k(circle, noisy) >= 50


def test_choose_k_with_hardly_any_label():
    assert choose_k(torch.eye(2), torch.tensor([0, 1])) == 2
    assert 1 <= choose_k(torch.eye(4), torch.tensor([0, 1, 0, 1])) <= 3


@pytest.mark.parametrize(
    ("n", "kwargs", "words"),
    [(0, {}, "0 training rows"), (3, {"k": 0}, "k is 0"), (3, {"temperature": 0.0}, "temperature is 0.0")],
)
def test_refuses(n, kwargs, words):
    with pytest.raises(UserError, match=words):
        knn(torch.ones(n, 2), torch.zeros(n, dtype=torch.int64), torch.ones(1, 2), **kwargs)
