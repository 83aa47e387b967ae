"""two_tower: its loss beside the whole softmax, how often negatives are drawn, and items that nobody had."""

from typing import Any

import numpy as np
import pytest
import torch

from selftaught.data.events import EventSource
from selftaught.data.item_table import ItemFacts
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.sequences import SIZES
from selftaught.errors import UserError
from selftaught.losses.items import sampled_softmax_loss, softmax_loss
from selftaught.pretext.two_tower import TwoTower
from selftaught.workflow.item_words import WIDTH, item_vectors
from tests.contracts.conftest import ITEMS, batch_of, make, walked


def test_the_loss_is_that_of_all_items_in_the_mean() -> None:
    """With many draws it is the whole softmax, however unevenly they are drawn; without the correction it is not."""
    g = torch.Generator().manual_seed(0)
    hidden, table = torch.randn(20, 8, generator=g), torch.randn(12, 8, generator=g)
    target = torch.randint(1, 11, (20,), generator=g)
    share = torch.cat([torch.zeros(1), torch.arange(1.0, 11), torch.zeros(1)]) / 55
    draws = share.multinomial(200_000, replacement=True, generator=g)
    whole = softmax_loss(hidden, table, target)
    torch.testing.assert_close(sampled_softmax_loss(hidden, table, target, draws, share), whole, rtol=0.004, atol=0)
    assert abs(sampled_softmax_loss(hidden, table, target, draws) - whole) > 0.01 * whole


def test_the_formula() -> None:
    """Eq. 3 to 5 row by row: each candidate's product less the log of how often it is drawn; the target's own is whole."""
    g = torch.Generator().manual_seed(1)
    hidden, table = (torch.randn(n, 8, generator=g, requires_grad=True) for n in (5, 12))
    target, draws = torch.tensor([1, 2, 3, 3, 9]), torch.tensor([2, 2, 3, 8, 10, 1])
    share = torch.rand(12, generator=g) / 10
    terms = []
    for h, t in zip(hidden, target, strict=True):
        candidates = [h @ table[t]] + [h @ table[j] - torch.log(6 * share[j]) for j in draws if j != t]
        terms.append(torch.stack(candidates).logsumexp(0) - h @ table[t])
    expected, found = torch.stack(terms).mean(), sampled_softmax_loss(hidden, table, target, draws, share)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, table)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_negatives_are_drawn_as_often_as_they_occur() -> None:
    task: Any = make("two_tower", negatives=100_000)
    drawn = task.drawn(batch_of("two_tower"))
    assert (drawn.min() >= 1) & (drawn.max() <= ITEMS)
    occurs = torch.bincount(walked().item, minlength=ITEMS + 2)[1:-1] + 1.0
    found = torch.bincount(drawn, minlength=ITEMS + 2)[1:-1]
    assert (found / found.sum() - occurs / occurs.sum()).abs().max() < 0.003
    with pytest.raises(UserError, match="negatives is 0"):
        TwoTower.Config(negatives=0)


def test_items_alike_in_words_are_alike_however_rare() -> None:
    options = {**SIZES["tower_small"], "features": 3}
    encoder: Any = build(EncoderConfig("tower_small", 12, 0, options=options, vocabulary=6))
    encoder.know(torch.tensor([[0.0] * 3, [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [9] * 3]))
    table = encoder.embeddings
    assert torch.equal(table[1], table[3])
    assert not torch.equal(table[1], table[2])
    assert not table[[0, -1]].any()
    assert table[1:3].norm(dim=1).tolist() == pytest.approx([0.16, 0.16], rel=1e-4)


def test_words_and_attributes_become_numbers() -> None:
    facts = ItemFacts(
        ["red wine", "red wine", "old bread", ""], np.array([0, 1, 2]), np.array([0, 0, 1]), ["drink", "food"]
    )
    bounds, item = np.array([[0, 2], [2, 4]]), np.array([0, 1, 2, 3], np.int32)
    source = EventSource(["a", "b"], list("wxyz"), bounds, item, hashes=np.zeros(2, np.uint64), about=facts)
    found = item_vectors(source, None)
    assert found.shape == (4, WIDTH)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
    assert abs(found[0] @ found[2]) < 0.1 * found[0] @ found[1]
    assert found[:3].square().mean(1).tolist() == pytest.approx([1, 1, 1], rel=1e-3)
    assert not found[3].any()
    source.about = None
    with pytest.raises(UserError, match=r"add \?items=FILE"):
        item_vectors(source, None)
