"""Losses over a catalogue against their formulas, in value and gradient; memory in parts changes nothing."""

import math

import pytest
import torch
from torch import Tensor

from selftaught.losses import items


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor]:
    """hidden [6, 4], table [12, 4] of ten items, targets [6]."""
    g = torch.Generator().manual_seed(0)
    hidden, table = (torch.randn(n, 4, generator=g, requires_grad=True) for n in (6, 12))
    return hidden, table, torch.tensor([1, 10, 3, 3, 7, 5])


def same(mine: Tensor, other: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(other, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def naive_softmax(hidden: Tensor, table: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros(())
    for h, t in zip(hidden, target.tolist()):
        scores = [(h * table[i]).sum() for i in range(1, len(table) - 1)]  # neither no event nor the mask
        total = total - torch.log(torch.exp(scores[t - 1]) / sum(torch.exp(s) for s in scores))
    return total / len(target)


@pytest.mark.parametrize("at_once", [1 << 26, 24])
def test_softmax(given: tuple[Tensor, Tensor, Tensor], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_LOGITS", at_once)  # 24 logits: two rows at a time
    monkeypatch.setattr(items, "_LEAST_ROWS", 2)
    hidden, table, target = given
    same(items.softmax_loss(hidden, table, target), naive_softmax(*given), hidden, table)


def test_sampled_softmax(given: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, table, target = given
    negatives = torch.tensor([2, 3, 9, 2])
    total = torch.zeros(())
    for h, t in zip(hidden, target.tolist()):
        own = torch.exp((h * table[t]).sum())
        others = sum(torch.exp((h * table[i]).sum()) * 10 / 4 for i in negatives.tolist() if i != t)
        total = total - torch.log(own / (own + others))
    same(items.sampled_softmax_loss(hidden, table, target, negatives), total / 6, hidden, table)


def test_sampled_softmax_is_the_whole_one_where_every_item_is_drawn_once() -> None:
    hidden, table = torch.randn(3, 4), torch.randn(12, 4)
    target = torch.tensor([4, 4, 4])
    found = items.sampled_softmax_loss(hidden, table, target, torch.arange(1, 11))  # the target itself is left out
    torch.testing.assert_close(found, items.softmax_loss(hidden, table, target))


def test_binary(given: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, table, target = given
    negatives = torch.tensor([[2, 4], [1, 1], [5, 6], [7, 8], [9, 10], [1, 2]])
    total = torch.zeros(())
    for h, t, row in zip(hidden, target.tolist(), negatives.tolist()):
        total = total - torch.log(torch.sigmoid((h * table[t]).sum()))
        total = total - sum(torch.log(1 - torch.sigmoid((h * table[i]).sum())) for i in row) / len(row)
    same(items.binary_loss(hidden, table, target, negatives), total / 6, hidden, table)


def test_what_lies_beside_a_history_is_any_item_that_it_has_not() -> None:
    """Each as often, by its rank among them; of a row with nothing all are such items, and of one with all of them, too."""
    g = torch.Generator().manual_seed(0)
    own = torch.randint(0, 8, (400, 12), generator=g)  # repeats, zeros between them; 8 and 9 in none
    u = torch.rand(400, 3, generator=g)
    found = items.beside(own, u, 9)
    for has, draws, ids in zip(own.tolist(), u.tolist(), found.tolist(), strict=True):
        others = sorted(set(range(1, 10)) - set(has))
        assert ids == [others[int(x * len(others))] for x in draws]
    every, highest = torch.arange(10)[None] / 10 + 0.01, torch.tensor([[1 - 2**-24]])
    for row in ([[0, 0]], [[3, 1, 2, 9, 8, 7, 6, 5, 4, 10, 10]], [list(range(1, 11)) * 9]):
        assert items.beside(torch.tensor(row), every, 10).tolist() == [list(range(1, 11))]
    assert items.beside(torch.tensor([[10, 1]]), highest, 10).tolist() == [[9]]
    assert items.beside(torch.zeros(2, 0, dtype=torch.int64), u[:2], 9).shape == (2, 3)


def test_chance_is_the_logarithm_of_the_catalogue() -> None:
    zero = torch.zeros(5, 4)
    assert items.softmax_loss(zero, torch.randn(102, 4), torch.arange(1, 6)).item() == pytest.approx(math.log(100))
