"""SimSiam against equation 2 of its paper, and its collapse where the stop-gradient is left out."""

import types

import pytest
import torch

from selftaught.batch import Batch, Step
from selftaught.errors import UserError
from selftaught.heads import ProjectionHead
from selftaught.losses.cosine import mean_cosine
from selftaught.pretext.simsiam import SimSiam
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig, lr_at
from tests.contracts.conftest import batch_of, make
from tests.pretext.watched import VIEW, first_alarm, watched


def small(**settings: object) -> SimSiam:
    task = make("simsiam", view=VIEW, hidden=128, out=128, bottleneck=32, **settings)
    assert isinstance(task, SimSiam)
    return task


def leaking(task: SimSiam, batch: Batch) -> Step:
    """The same loss, gradient through both sides."""
    z1, z2 = task.projected_apart(batch)
    return Step(-(mean_cosine(task.predictor(z1), z2) + mean_cosine(task.predictor(z2), z1)) / 2, {})


def test_loss_is_the_published_one() -> None:
    task, batch = small().eval(), batch_of("simsiam", 8)
    views = [task.modality.view(batch, task.views[0], stream) for stream in (1, 2)]
    z = [task.head(task.encoder(v).pooled).double() for v in views]
    p = [task.predictor(x.float()).double() for x in z]
    expected = torch.zeros((), dtype=torch.float64)
    for a, b in ((p[0], z[1].detach()), (p[1], z[0].detach())):
        for k in range(len(batch)):
            expected = expected - (a[k] @ b[k]) / (a[k].norm() * b[k].norm()) / (2 * len(batch))
    loss = task(batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    weights = list(task.parameters())
    found, wanted = (torch.autograd.grad(x, weights) for x in (loss, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    leak = torch.autograd.grad(leaking(task, batch).loss, weights)
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(found, leak, strict=True))


def test_the_heads_are_the_papers() -> None:
    c = SimSiam.Config()
    assert (c.layers, c.hidden, c.out, c.bottleneck) == (3, 2048, 2048, 512)
    task = small()
    last = task.head[-1]
    assert isinstance(last, torch.nn.BatchNorm1d)
    assert not last.affine
    assert [m.out_features for m in task.predictor if isinstance(m, torch.nn.Linear)] == [32, 128]
    assert make("simsiam").views[0].crop_scale == (0.2, 1.0)
    assert make("simsiam", view={"crop_scale": [0.5, 1.0]}).views[0].crop_scale == (0.5, 1.0)


def test_each_view_is_normalised_by_itself() -> None:
    task, batch = small(), batch_of("simsiam", 8)
    z1, z2 = task.projected_apart(batch)
    for z in (z1, z2):
        torch.testing.assert_close(z.mean(0), torch.zeros(128), rtol=0, atol=1e-5)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="bottleneck"):
        SimSiam.Config(bottleneck=0)


def test_the_predictors_rate_does_not_decay() -> None:
    """Section 4.2: the paper's later figures, and the authors' command, hold it."""
    task, batch = small(), batch_of("simsiam", 8)
    optim = OptimConfig(name="sgd", lr=0.1, warmup=0.0)
    trainer = Trainer(task, TrainConfig(4, batch=8, optim=optim), Ranks())
    rates = []
    for _ in range(4):
        trainer.train_step(batch)
        of = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
        rates.append([{of[id(p)] for p in part.parameters()} for part in (task.predictor, task.head, task.encoder)])
    assert [predictor for predictor, _, _ in rates] == [{0.1}] * 4
    assert [encoder for _, _, encoder in rates] == [{lr_at(s, 4, optim)} for s in range(4)]
    assert all(head == encoder for _, head, encoder in rates)
    assert max(rates[3][2]) < 0.02


OPTIM = {"name": "sgd", "lr": 0.1, "weight_decay": 5e-3, "min_lr_ratio": 1.0}


def watch(stop_gradient: bool, last_norm: bool) -> str | None:
    """The first alarm of 180 steps. last_norm False: BatchNorm on hidden layers only (the paper's table 3b, which learns)."""
    task = small()
    if not last_norm:
        torch.manual_seed(0)
        task.head = ProjectionHead(task.encoder.width, 128, 128, layers=3)
    if not stop_gradient:
        task.forward = types.MethodType(leaking, task)  # type: ignore[method-assign]
    alarm = first_alarm(*watched(task, 180, batch=32, **OPTIM))
    return alarm and alarm.kind


def test_without_stop_gradient_it_collapses() -> None:
    assert watch(stop_gradient=False, last_norm=False) == "complete collapse"


def test_with_stop_gradient_it_does_not() -> None:
    assert watch(stop_gradient=True, last_norm=False) is None


def test_as_published_the_collapse_is_of_dimensions() -> None:
    """BatchNorm on the projector's output keeps it from becoming a point: it becomes a line, and is named as that."""
    assert watch(stop_gradient=False, last_norm=True) == "dimensional collapse"


def test_as_published_it_is_healthy() -> None:
    assert watch(stop_gradient=True, last_norm=True) is None
