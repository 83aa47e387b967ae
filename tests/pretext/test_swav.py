"""SwAV against its paper's formulas, written out in loops, and what happens without equal shares of the prototypes."""

import math
from typing import Any

import pytest
import torch

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.losses.clusters import across_views, sinkhorn
from selftaught.pretext.swav import SwAV
from selftaught.train.config import OptimConfig, TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from tests.contracts.conftest import make

SMALL = {"prototypes": 20, "hidden": 32, "out": 16, "local": 2}


def naive_codes(scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Listing 1 of the paper: Q is K x B."""
    q = torch.exp(scores.double() / epsilon).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        for i in range(k):
            q[i] = q[i] / q[i].sum() / k
        for j in range(b):
            q[:, j] = q[:, j] / q[:, j].sum() / b
    return (q * b).T


@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_are_the_published_ones(iterations: int) -> None:
    scores = torch.randn(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
    found = sinkhorn(scores, 0.05, iterations)
    torch.testing.assert_close(found, naive_codes(scores, 0.05, iterations), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sinkhorn(scores.float(), 0.05, iterations), found.float(), rtol=1e-4, atol=1e-6)


def test_codes_are_balanced_and_cannot_overflow() -> None:
    """All samples prefer one prototype; the softmax gives it all of them, Sinkhorn's codes as many as the others."""
    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    scores[:, 3] += 0.9
    codes = sinkhorn(scores, 0.05, 50)
    torch.testing.assert_close(codes.sum(1), torch.ones(64))
    torch.testing.assert_close(codes.sum(0), torch.full((8,), 8.0), rtol=1e-3, atol=0)
    assert (scores / 0.05).softmax(1).sum(0)[3] > 60
    extreme = sinkhorn(scores * 1e5, 1e-3, 3)  # exp of this is infinite even in float64
    assert torch.isfinite(extreme).all()
    torch.testing.assert_close(extreme.sum(1), torch.ones(64))


def test_uncounted_rows_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, more = torch.randn(12, 5, generator=generator), torch.randn(6, 5, generator=generator)
    counted = torch.arange(18) < 12
    found = sinkhorn(torch.cat([scores, more]), 0.5, 3, counted)
    torch.testing.assert_close(found[:12], sinkhorn(scores, 0.5, 3))
    assert torch.isfinite(found).all()


def naive_loss(scores: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for t in range(len(codes)):
        for v in range(len(scores)):
            if v == t:
                continue
            pairs += 1
            for n in range(scores.shape[1]):
                e = torch.exp(scores[v, n] / temperature)
                for k in range(scores.shape[2]):
                    total = total - codes[t, n, k] * torch.log(e[k] / e.sum()) / scores.shape[1]
    return total / pairs


def test_loss_and_gradient_are_the_published_ones(batch: Batch) -> None:
    task = make("swav", **SMALL).eval()
    assert isinstance(task, SwAV)
    task.progress.fill_(0.5)
    views = task.drawn(batch)
    assert [v.shape[-1] for v in views] == [16, 16, 7, 7]
    loss = task(batch).loss
    loss.backward()
    c = task.prototypes.weight.detach().double().requires_grad_()
    with torch.no_grad():
        z = torch.stack([task.head(task.encoder(v).pooled) for v in views]).double()
    scores = z / z.norm(dim=-1, keepdim=True) @ (c / c.norm(dim=1, keepdim=True)).T
    codes = torch.stack([naive_codes(s, 0.05, 3) for s in scores[:2].detach()])
    expected = naive_loss(scores, codes, 0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    assert task.prototypes.weight.grad is not None
    torch.testing.assert_close(task.prototypes.weight.grad, c.grad.float(), rtol=1e-3, atol=1e-6)


def trained(batch: Batch, steps: int, balanced: bool) -> float:
    """How many prototypes the batch uses after some steps, the codes balanced or the plain softmax of the scores."""
    task: Any = make("swav", **SMALL, freeze=0.0)
    if not balanced:
        task.codes = lambda view, scores: (scores.detach() / 0.05).softmax(1)
    optimizer = torch.optim.AdamW(task.parameters(), 3e-3)
    for step in range(steps):
        loss, metrics = task(Batch(batch.inputs, batch.index, 0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step / steps)
    return metrics["prototypes_used"].item()


def test_without_equal_shares_few_prototypes_are_used(batch: Batch) -> None:
    """The known collapse: predicting one code for all samples is right wherever codes are not forced to differ."""
    assert trained(batch, 40, balanced=False) < 6
    assert trained(batch, 40, balanced=True) > 15


def test_prototypes_are_frozen_at_first_and_stay_on_the_sphere(batch: Batch) -> None:
    task = make("swav", **SMALL, freeze=0.2)
    assert isinstance(task, SwAV)
    trainer = Trainer(task, TrainConfig(steps=10, batch=24, optim=OptimConfig(lr=1e-3, warmup=0.0)), Ranks())
    start, weight = task.prototypes.weight.detach().clone(), task.prototypes.weight
    for step in range(3):
        trainer.train_step(Batch(batch.inputs, batch.index, 0, step))
        # A step with a gradient of zero would count: the first true one would then be several times too long.
        assert (weight in trainer.optimizer.state) == (step == 2)
        assert torch.allclose(weight, start, atol=1e-6) == (step < 2)
    assert trainer.optimizer.state[weight]["step"] == 1
    with torch.no_grad():
        task.prototypes.weight.mul_(3)
    task.after_step(0.3)
    torch.testing.assert_close(task.prototypes.weight.norm(dim=1), torch.ones(20))


def test_the_queue_shares_the_prototypes_from_its_time_on(batch: Batch) -> None:
    task = make("swav", **SMALL, queue=48, queue_from=0.5)
    assert isinstance(task, SwAV)
    without = make("swav", **SMALL)
    scores = task.prototypes(torch.randn(24, 16, generator=torch.Generator().manual_seed(0)))
    task(batch)
    assert not task.queues[0].filled.any()  # state changes after the step alone
    task.after_step(0.1)
    assert [int(q.filled.sum()) for q in task.queues] == [24, 24]
    assert not torch.equal(task.queues[0].rows, task.queues[1].rows)
    assert isinstance(without, SwAV)
    torch.testing.assert_close(task.codes(0, scores), without.codes(0, scores))
    task.after_step(0.5)
    rows = task.prototypes(task.queues[0].rows[:24])
    expected = naive_codes(torch.cat([scores, rows]).detach(), 0.05, 3)[:24]
    torch.testing.assert_close(task.codes(0, scores), expected.float(), rtol=1e-4, atol=1e-6)
    task.eval()(batch)
    task.after_step(0.6)
    assert int(task.queues[0].filled.sum()) == 24  # held-out samples never enter


def test_mean_over_pairs_of_views() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator)
    target = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator).softmax(-1)
    assert across_views(logits, target).item() == pytest.approx(naive_loss(logits, target, 1.0).item(), rel=1e-12)


def test_chance_is_a_uniform_guess() -> None:
    assert make("swav", **SMALL).chance(8) == pytest.approx(math.log(20))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prototypes": 0}, "prototypes"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"queue": -1}, "queue"),
        ({"freeze": 1.5}, "freeze"),
        ({"local": -1}, "local"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"pretext.{words}"):
        SwAV.Config(**settings)
