"""next_item and masked_item: what is asked, what is drawn, and that each loss of the settings is the one it says."""

import dataclasses

import pytest
import torch

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.losses import items
from selftaught.losses.items import drawn
from selftaught.pretext.next_item import NextItem
from tests.contracts.conftest import ITEMS, batch_of, make


def states(task, batch: Batch):  # type: ignore[no-untyped-def]
    """States and targets of every event but the first, row by row."""
    hidden, target = [], []
    for row, n in enumerate(batch.inputs["length"].tolist()):
        ids = batch.inputs["items"][
            row, max(0, n - 13) : n
        ]  # twelve events are read, and the one behind them asked for
        one = {"items": ids[None], "length": torch.tensor([len(ids)])}
        before = task.modality.plain(
            dataclasses.replace(
                batch,
                inputs={"items": one["items"][:, :-1], "length": one["length"] - 1},
                index=batch.index[row : row + 1],
            )
        )
        hidden.append(task.encoder(before).tokens[0])
        target.append(ids[1:])
    return torch.cat(hidden), torch.cat(target)


@pytest.mark.parametrize("loss", ["softmax", "sampled", "bce"])
def test_every_event_is_asked_for_after_those_before_it(loss: str) -> None:
    task, batch = make("next_item", loss=loss).eval(), batch_of("next_item")
    hidden, target = states(task, batch)
    table = task.encoder.embeddings  # type: ignore[union-attr]
    found, metrics = task(batch)
    assert metrics["targets"] == len(target)
    if loss == "softmax":
        torch.testing.assert_close(found, items.softmax_loss(hidden, table, target), rtol=1e-4, atol=1e-5)
    elif loss == "sampled":  # 1024 draws of 40 items: near the whole one
        torch.testing.assert_close(found, items.softmax_loss(hidden, table, target), rtol=0.05, atol=0.0)
    else:
        assert 0.5 * task.chance(24) < found < 1.5 * task.chance(24)  # type: ignore[operator]


def test_only_what_is_asked_counts() -> None:
    task, batch = make("next_item").eval(), batch_of("next_item")
    last = torch.arange(batch.inputs["items"].shape[1]) == batch.inputs["length"][:, None] - 1
    asked = dataclasses.replace(batch, inputs={**batch.inputs, "scored": last})
    assert task(asked).metrics["targets"] == len(batch)
    hidden, _ = states(task, batch)
    ends = (batch.inputs["length"].clamp_max(13) - 1).cumsum(0) - 1
    items_last = batch.inputs["items"].gather(1, batch.inputs["length"][:, None] - 1)[:, 0]
    expected = items.softmax_loss(hidden[ends], task.encoder.embeddings, items_last)  # type: ignore[union-attr]
    torch.testing.assert_close(task(asked).loss, expected, rtol=1e-4, atol=1e-5)
    masked = make("masked_item").eval()
    hidden_events = masked.drawn(asked)[1]  # type: ignore[operator]
    assert (hidden_events.sum(1) == 1).all()


def test_bce_has_negatives_that_are_not_in_the_history() -> None:
    """random_neq of the authors' code, event by event."""
    task, batch = make("next_item", loss="bce", negatives=2).eval(), batch_of("next_item")
    hidden, target = states(task, batch)
    length, negatives = batch.inputs["length"].clamp_max(13) - 1, []
    u = batch.uniform(41, 2 * int(length.max())).unflatten(1, (-1, 2))
    for row, n in enumerate(length.tolist()):
        others = sorted(set(range(1, ITEMS + 1)) - set(batch.inputs["items"][row].tolist()))
        negatives += [[others[int(x * len(others))] for x in both] for both in u[row, :n].tolist()]
    table = task.encoder.embeddings  # type: ignore[union-attr]
    expected = items.binary_loss(hidden, table, target, torch.tensor(negatives))
    torch.testing.assert_close(task(batch).loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sampled", "bce"])
@pytest.mark.parametrize("count", [1, 16])
def test_histories_of_one_event_have_nothing_before_it(count: int, loss: str) -> None:
    """As where a user of validation has none: known failure of 16 and more."""
    one = {"items": torch.arange(1, count + 1)[:, None], "length": torch.ones(count, dtype=torch.int64)}
    task = make("next_item", loss=loss)
    loss_, metrics = task(Batch({**one, "scored": one["items"] > 0}, torch.arange(count), seed=0, step=0))
    assert (loss_.item(), metrics["targets"]) == (0.0, 0)


def test_uniform_numbers_give_all_ids_alike() -> None:
    assert drawn(torch.tensor([0.0, 0.5, 1 - 1e-7]), 4).tolist() == [1, 3, 4]


def test_settings_that_would_do_nothing_are_refused() -> None:
    for given, message in (
        ({"negatives": 0}, "negatives is 0"),
        ({"negatives": 5}, "negatives is 5, and the softmax is"),
    ):
        with pytest.raises(UserError, match=message):
            NextItem.Config(**given)
    assert NextItem.Config(loss="bce", negatives=5).negatives == 5


def test_masked_events_are_an_exact_share_and_all_hidden_behind_the_mask() -> None:
    task, batch = make("masked_item", last=0.0).eval(), batch_of("masked_item", 200)
    x, hidden, shown = task.drawn(batch)  # type: ignore[operator]
    length = x.valid.sum(1)
    assert torch.equal(hidden.sum(1), (length * 0.2).round().clamp_min(1).long())
    assert (shown.ids[hidden] == task.modality.mask).all()  # type: ignore[union-attr]
    assert torch.equal(shown.ids[~hidden], x.ids[~hidden])
    always = make("masked_item", last=1.0, prefix=False).eval()
    end = always.drawn(batch)[1]  # type: ignore[operator]
    assert torch.equal(end, torch.arange(x.ids.shape[1]) == length[:, None] - 1)
    cut, end, _ = make("masked_item", last=1.0).drawn(batch)  # type: ignore[operator]
    ends = cut.valid.sum(1)
    assert torch.equal(end, torch.arange(x.ids.shape[1]) == ends[:, None] - 1)
    assert ((ends >= 2) & (ends <= length)).all()
    assert set(ends[length == 12].tolist()) == set(range(2, 13)), "any event from the second on"
    assert torch.equal(cut.ids[cut.valid], x.ids[cut.valid])
    states = task.encoder(shown).tokens[hidden]
    expected = items.softmax_loss(states, task.encoder.embeddings, x.ids[hidden])  # type: ignore[union-attr]
    torch.testing.assert_close(task(batch).loss, expected)
