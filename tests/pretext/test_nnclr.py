"""NNCLR against algorithm 1 of its paper, and what its neighbours may be."""

import pytest
import torch
from torch.nn import functional as F

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.pretext.nnclr import NNCLR
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig
from tests.contracts.conftest import make


def small(queue: int = 40, **settings: object) -> NNCLR:
    task = make("nnclr", queue=queue, hidden=32, predictor_hidden=24, out=16, **settings)
    assert isinstance(task, NNCLR)
    return task.eval()


def naive(task: NNCLR, batch: Batch, support: torch.Tensor, tau: float) -> torch.Tensor:
    """Neighbours without gradient, one by one; none without support, then each view stands for itself."""
    z = [F.normalize(x.double(), dim=1) for x in task.projected(batch)]
    p = [F.normalize(task.predictor(x).double(), dim=1) for x in task.projected(batch)]
    total = z[0].new_zeros(())
    for a, b in ((0, 1), (1, 0)):
        for i in range(len(batch)):
            nearest = z[a][i].detach()
            if len(support):
                nearest = support[(support @ nearest).argmax()]
            logits = torch.stack([nearest @ p[b][k] / tau for k in range(len(batch))])
            total = total - logits[i] + logits.logsumexp(0)
    return total / (2 * len(batch))


@pytest.mark.parametrize("filled", [0, 1, 25])
def test_loss_is_the_published_one(batch: Batch, filled: int) -> None:
    """With nothing filled it is InfoNCE between the views. Rows that were not pushed are the views' own projections here, the
    nearest there could be: they must not be found."""
    task = small()
    g = torch.Generator().manual_seed(0)
    support = F.normalize(torch.randn(filled, 16, generator=g), dim=1)
    task.queue.push(support)
    task.queue.rows[25:] = F.normalize(torch.cat(task.projected(batch)).detach(), dim=1)[:15]
    loss = task(batch).loss
    expected = naive(task, batch, support.double(), 0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for weight in (task.predictor[-1].weight, task.head[0].weight):
        ours, theirs = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (loss, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_neighbours_are_of_the_filled_rows_and_have_no_gradient() -> None:
    task = small(queue=6)
    z = torch.eye(16)[:4].requires_grad_()
    alone = task.neighbours(z)
    torch.testing.assert_close(alone, torch.eye(16)[:4])
    task.queue.rows.copy_(torch.eye(16)[:6])
    task.queue.push(torch.stack([z[0] + 0.5 * z[1], z[2]]).detach())
    found = task.neighbours(3 * z)
    assert not alone.requires_grad
    assert not found.requires_grad
    assert torch.equal(found[[0, 1]], task.queue.rows[[0, 0]])
    assert torch.equal(found[2], task.queue.rows[1])
    assert any(torch.equal(found[3], row) for row in task.queue.rows[:2])


def test_the_support_set_takes_up_view_1_after_the_step(batch: Batch) -> None:
    task = small(queue=len(batch) * 2 - 4).train()
    before = task.queue.rows.clone()
    with torch.no_grad():
        z1 = F.normalize(task.projected(batch)[0], dim=1)
    task(batch)
    assert torch.equal(task.queue.rows, before)  # the loss did not see its own embeddings
    task.after_step(0.5)
    n = len(batch)
    torch.testing.assert_close(task.queue.rows[:n], z1)
    assert torch.equal(task.queue.rows[n:], before[n:])
    assert task.queue.filled.sum() == n
    for _ in range(2):  # two parts of an accumulated step, and the oldest make room
        task(batch)
    task.after_step(0.6)
    assert task.queue.pushed == 3 * n
    torch.testing.assert_close(task.queue.rows[: n + 4], torch.cat([z1[-4:], z1]))
    torch.testing.assert_close(task.queue.rows[n + 4 :], z1[4:-4])
    task.eval()(batch)
    task.after_step(0.7)
    assert task.queue.pushed == 3 * n


def test_earlier_batches_give_the_positives(batch: Batch) -> None:
    """After a few steps most neighbours are no longer the views themselves."""
    task = small(queue=200).train()
    trainer = Trainer(task, TrainConfig(steps=10, batch=len(batch), optim=OptimConfig(warmup=0.0)), Ranks())
    losses = [trainer.train_step(batch)["loss"] for _ in range(4)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert task.queue.pushed == 4 * len(batch)
    with torch.no_grad():
        z = F.normalize(task.eval().projected(batch)[0], dim=1)
    assert not torch.allclose(task.neighbours(z), z, atol=1e-3)


@pytest.mark.parametrize("name", ["queue", "temperature", "predictor_hidden"])
def test_nothing_below_zero(name: str) -> None:
    with pytest.raises(UserError, match=f"'pretext.{name}' is 0; it must be above 0"):
        NNCLR.Config(**{name: 0})
