"""Sample order: a function of (seed, step), whatever the ranks, the loader's workers and the cuts of a run."""

import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from selftaught.batch import Batch
from selftaught.errors import RunStopped, UserError
from selftaught.train.order import Order, batches

N, BATCH, SEED, STEPS = 103, 12, 7, 40
CPU = torch.device("cpu")


def _fetch(positions: np.ndarray, step: int) -> Batch:
    return Batch({}, torch.from_numpy(positions), SEED, step)


def _served(order: Order, first: int, last: int, workers: int) -> list[tuple[int, list[int]]]:
    return [(b.step, b.index.tolist()) for b in batches(_fetch, order, first, last, workers, CPU)]


def _straight() -> list[tuple[int, list[int]]]:
    order = Order(N, BATCH, SEED)
    return [(step, order.of_step(step).tolist()) for step in range(STEPS)]


def _cuts() -> Iterator[list[int]]:
    """Steps at which a run is stopped and resumed: none, each one, and random ones."""
    yield []
    yield list(range(1, STEPS))
    draw = random.Random(1)
    for _ in range(12):
        yield sorted(draw.sample(range(1, STEPS), draw.randint(1, 8)))


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_union_over_ranks_does_not_depend_on_ranks_workers_or_cuts(world: int, workers: int) -> None:
    expected = _straight()
    for cuts in _cuts():
        found: list[tuple[int, list[int]]] = []
        for first, last in zip([0, *cuts], [*cuts, STEPS], strict=True):
            # A resumed run has a new Order, which never saw the steps before.
            ranks = [_served(Order(N, BATCH, SEED, rank, world), first, last, workers) for rank in range(world)]
            for parts in zip(*ranks, strict=True):
                assert len({step for step, _ in parts}) == 1
                assert {len(index) for _, index in parts} == {BATCH // world}
                found.append((parts[0][0], [i for _, index in parts for i in index]))
        assert found == expected, cuts


def test_every_epoch_is_a_permutation_and_no_two_are_the_same() -> None:
    n, batch = 96, 12  # nothing is left out
    order = Order(n, batch, SEED)
    epochs = []
    for epoch in range(20):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        epochs.append(np.concatenate([order.of_step(s) for s in steps]))
    assert all(np.array_equal(np.sort(e), np.arange(n)) for e in epochs)
    assert len({e.tobytes() for e in epochs}) == 20
    # Each sample comes about equally often first: a shuffle that only swaps neighbours would not do.
    first = np.concatenate([e[: n // 2] for e in epochs])
    assert np.bincount(first, minlength=n).min() >= 2


def test_remainder_is_left_out_and_changes_from_epoch_to_epoch() -> None:
    order = Order(N, BATCH, SEED)
    assert order.steps_per_epoch == 8
    left_out = []
    for epoch in range(12):
        seen = np.concatenate([order.of_step(epoch * 8 + s) for s in range(8)])
        assert len(np.unique(seen)) == 96, "a sample came twice in an epoch"
        left_out.append(np.setdiff1d(np.arange(N), seen))
    assert len(np.unique(np.concatenate(left_out))) > 40


def test_order_depends_on_the_seed() -> None:
    assert not np.array_equal(Order(N, BATCH, 1).of_step(0), Order(N, BATCH, 2).of_step(0))


def test_steps_may_be_asked_for_in_any_order() -> None:
    order, expected = Order(N, BATCH, SEED), dict(_straight())
    for step in random.Random(3).sample(range(STEPS), STEPS):
        assert order.of_step(step).tolist() == expected[step]


@pytest.mark.parametrize(("batch", "world", "low", "high"), [(250, 4, 248, 252), (33, 2, 32, 34), (7, 3, 6, 9)])
def test_indivisible_batch_names_the_two_nearest(batch: int, world: int, low: int, high: int) -> None:
    message = f"batch {batch} is not divisible by {world} ranks; use --batch {low} or {high}"
    with pytest.raises(UserError, match=f"^{message}$"):
        Order(1000, batch, SEED, 0, world)


def test_batch_below_the_ranks_names_only_what_is_possible() -> None:
    with pytest.raises(UserError, match=r"batch 3 is not divisible by 4 ranks; use --batch 4$"):
        Order(1000, 3, SEED, 0, 4)


def test_batch_above_the_samples_is_refused() -> None:
    with pytest.raises(UserError, match="batch 104 is larger than the 103 training samples; use --batch 103 or less"):
        Order(N, 104, SEED)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_of_the_loader_comes_to_the_loop_at_its_step(workers: int) -> None:
    def failing(positions: np.ndarray, step: int) -> Batch:
        if step == 5:
            raise RunStopped("the disk is gone")
        return _fetch(positions, step)

    stream = batches(failing, Order(N, BATCH, SEED), 0, STEPS, workers, CPU)
    assert [next(stream).step for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RunStopped, match="the disk is gone"):
        next(stream)


def test_a_loop_that_is_left_early_leaves_no_thread() -> None:
    stream = batches(_fetch, Order(N, BATCH, SEED), 0, STEPS, 2, CPU)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("selftaught-load")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 3])
def test_a_card_gets_the_same_batches_while_it_computes(workers: int) -> None:
    card = torch.device("cuda", 0)

    def fetch(positions: np.ndarray, step: int) -> Batch:
        pixels = torch.full((BATCH, 64, 1024), step, dtype=torch.int32)
        return Batch({"pixels": pixels}, torch.from_numpy(positions), SEED, step, torch.from_numpy(positions) % 3)

    busy, sums, found = torch.randn(2048, 2048, device=card), [], []
    for batch in batches(fetch, Order(N, BATCH, SEED), 0, STEPS, workers, card):
        for _ in range(20):  # so that this step still reads when the memory of the next ones is asked for
            busy = (busy @ busy).clamp(-1, 1)
        sums.append((batch.inputs["pixels"] + 0 * busy[0, 0].int()).double().mean())
        found.append((batch.step, batch.index.tolist()))
        assert batch.labels is not None
        assert {x.device for x in batch.tensors()} == {card}
    assert found == _straight()
    assert torch.stack(sums).tolist() == list(range(STEPS))


def test_a_copied_batch_holds_what_the_batch_holds() -> None:
    inputs = {"a": torch.arange(6).reshape(3, 2), "b": torch.ones(3, dtype=torch.bool)}
    for labels in (None, torch.tensor([1, -1, 0])):
        batch = Batch(inputs, torch.tensor([5, 2, 9]), SEED, 4, labels)
        copied = batch.to("cpu")
        assert (copied.seed, copied.step, list(copied.inputs)) == (SEED, 4, ["a", "b"])
        assert len(copied.tensors()) == 3 + (labels is not None)
        assert all(torch.equal(a, b) for a, b in zip(copied.tensors(), batch.tensors(), strict=True))
