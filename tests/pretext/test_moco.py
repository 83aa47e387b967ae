"""MoCo against the formulas of its papers, its queue, and the copy that makes its keys."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from selftaught import settings
from selftaught.batch import Batch
from selftaught.ema import EMA
from selftaught.errors import UserError
from selftaught.pretext.moco import MoCo
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig
from tests import runs
from tests.contracts.conftest import make
from tests.contracts.test_pretext import _rank


def small(version: int = 2, encoder: str | None = None, **given: object) -> MoCo:
    task = make("moco", encoder, **{"version": version, "hidden": 32, "out": 16, "queue": 50, **given})
    assert isinstance(task, MoCo)
    return task


def apart(task: MoCo) -> MoCo:
    """Key networks that differ from the query's, as after some steps."""
    with torch.no_grad():
        for copy in (task.key_encoder, task.key_head):
            for p in copy.parameters():
                p.mul_(1.1)
    return task


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.double(), dim=1)


def queries(task: MoCo, view: torch.Tensor) -> torch.Tensor:
    z = task.head(task.encoder(view).pooled)
    return unit(task.predictor(z) if task.config.version == 3 else z)


def naive(task: MoCo, batch: Batch, stop: bool = True) -> torch.Tensor:
    """Cross-entropy of each query's key, query by query. stop False: keys of the query network, with its gradient."""
    views, tau = task.drawn(batch), task.config.temperature
    q = [queries(task, view) for view in views]
    k = [unit(task.keys(v) if stop else task.head(task.encoder(v).pooled)) for v in views]
    total = q[0].new_zeros(())
    for a, b in ((0, 1), (1, 0))[: 2 if task.config.version == 3 else 1]:
        for i in range(len(batch)):
            others = unit(task.queue.rows) if task.config.version == 2 else torch.cat([k[b][:i], k[b][i + 1 :]])
            logits = torch.cat([(q[a][i] @ k[b][i])[None], others @ q[a][i]]) / tau
            total = total + logits.logsumexp(0) - logits[0]
    return total / len(batch) * (2 * tau if task.config.version == 3 else 1)


@pytest.mark.parametrize("version", [2, 3])
def test_loss_is_the_published_one(batch: Batch, version: int) -> None:
    """In value and gradient; with gradient through the keys it would be another."""
    task = apart(small(version, temperature=0.3)).eval()
    loss = task(batch).loss
    assert loss.item() == pytest.approx(naive(task, batch).item(), rel=1e-5)
    loss.backward()
    weight = task.head[0].weight
    (expected,) = torch.autograd.grad(naive(task, batch), weight)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-3, atol=1e-6)
    same = small(version, temperature=0.3).eval()  # the copy has the query's weights: only the gradient differs
    with_keys, without = naive(same, batch, stop=False), naive(same, batch)
    assert with_keys.item() == pytest.approx(without.item(), rel=1e-6)
    other, ours = (torch.autograd.grad(x, same.head[0].weight)[0] for x in (with_keys, same(batch).loss))
    assert (other - ours).norm() > 0.02 * ours.norm()


@pytest.mark.parametrize("version", [2, 3])
def test_keys_take_no_gradient_and_no_place_in_the_optimiser(batch: Batch, version: int) -> None:
    task = small(version)
    copies = [*task.key_encoder.parameters(), *task.key_head.parameters()]
    task(batch).loss.backward()
    assert copies
    assert all(not p.requires_grad and p.grad is None for p in copies)
    trainer = Trainer(task, TrainConfig(steps=10, batch=len(batch)), Ranks())
    learnt = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not learnt & {id(p) for p in copies}


def test_negatives_are_of_the_queue_alone(batch: Batch) -> None:
    """The loss of each sample knows nothing of the others in its batch."""
    task = apart(small()).eval()
    rows = torch.arange(len(batch)).split([5, len(batch) - 5])
    parts = [Batch({k: v[r] for k, v in batch.inputs.items()}, batch.index[r], batch.seed, batch.step) for r in rows]
    mean = sum(task(part).loss * len(part) for part in parts) / len(batch)
    assert task(batch).loss.item() == pytest.approx(mean.item(), rel=1e-5)


def test_a_queue_with_the_batchs_own_keys_gives_another_loss(batch: Batch) -> None:
    """The leak: each query's key among its negatives too. The loss of a step is taken before its keys are pushed."""
    task = small(queue=len(batch)).eval()
    clean = task(batch)
    task.queue.push(F.normalize(task.keys(task.drawn(batch)[1]), dim=1))
    leak = task(batch)
    assert leak.loss.item() == pytest.approx(naive(task, batch).item(), rel=1e-5)
    assert leak.loss > math.log(2)
    assert leak.metrics["accuracy"] == 0
    assert (leak.loss - clean.loss).abs() > 0.1
    fresh = small(queue=len(batch)).train()
    before = fresh.queue.rows.clone()
    fresh(batch)
    assert torch.equal(fresh.queue.rows, before)


@pytest.mark.parametrize("queue", [60, 10])
def test_the_oldest_keys_make_room(batch: Batch, queue: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 24 in a queue of 60, and in one of 10 that holds none whole; two parts of a step are pushed together."""
    monkeypatch.setattr(EMA, "update", lambda *given: None)  # the same keys every time
    task = small(queue=queue).train()
    expected = task.queue.rows.clone()
    pushed, keys = 0, F.normalize(task.keys(task.drawn(batch)[1]), dim=1)
    for parts in (1, 1, 2, 1):
        for _ in range(parts):
            task(batch)
        task.after_step(0.1)
        for row in keys.repeat(parts, 1):
            expected[pushed % queue] = row
            pushed += 1
    torch.testing.assert_close(task.queue.rows, expected, rtol=1e-4, atol=1e-5)
    assert task.queue.pushed == pushed
    assert task.seen == []
    task.eval()(batch)
    task.after_step(0.2)
    assert task.queue.pushed == pushed


@pytest.mark.parametrize(("version", "progress", "kept"), [(2, 0.0, 0.9), (2, 1.0, 0.9), (3, 0.0, 0.9), (3, 0.5, 0.95)])
def test_the_copy_follows(version: int, progress: float, kept: float) -> None:
    task = apart(small(version, momentum=0.9))
    pairs = [(task.key_encoder, task.encoder), (task.key_head, task.head)]
    before = [p.clone() for copy, _ in pairs for p in copy.parameters()]
    task.after_step(progress)
    now = [p for copy, _ in pairs for p in copy.parameters()]
    query = [p for _, network in pairs for p in network.parameters()]
    for old, new, q in zip(before, now, query, strict=True):
        torch.testing.assert_close(new, kept * old + (1 - kept) * q)
    if version == 3:
        task.after_step(1.0)
        frozen = [p.clone() for p in now]
        task.after_step(1.0)
        assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True))


def test_version_3_leaves_a_vits_patches_at_random(batch: Batch) -> None:
    task = small(3, "vit_micro")
    frozen = {n for n, p in task.encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"model.patch_embed.proj.weight", "model.patch_embed.proj.bias"}
    before = {n: p.clone() for n, p in task.encoder.named_parameters()}
    trainer = Trainer(task, TrainConfig(steps=10, batch=len(batch), optim=OptimConfig(warmup=0.0)), Ranks())
    trainer.train_step(batch)
    kept = {n for n, p in task.encoder.named_parameters() if torch.equal(p, before[n])}
    assert frozen <= kept
    assert "model.blocks.0.attn.qkv.weight" not in kept
    assert all(p.requires_grad for p in small(2, "vit_micro").encoder.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")
def test_two_ranks_of_version_3_take_the_gradient_of_one(batch: Batch, tmp_path: Path) -> None:
    given: dict[str, object] = {"version": 3, "norm": "layer", "hidden": 32}
    task = make("moco", "vit_micro", **given).eval()
    task(batch).loss.backward()
    gradients = tmp_path / "gradients"
    save_file({n: p.grad.contiguous() for n, p in task.named_parameters() if p.grad is not None}, gradients)
    runs.on_ranks(_rank, "moco", given, str(gradients))


def test_a_loss_is_measured_against_keys_alone(batch: Batch) -> None:
    """Known failure: random rows are easily told from a key, and the lowest held-out loss was the first one."""
    task = small(queue=50).train()
    rows = task.queue.rows.clone()
    assert torch.equal(task.queue.pushed_alone(), rows), "none was pushed yet"
    task(batch)
    task.after_step(0.1)
    assert torch.equal(task.queue.pushed_alone(), task.queue.rows[:24].repeat(3, 1)[:50])
    task.eval()
    early = task(batch).loss.item()
    for count in (24, 2):
        task.queue.push(task.queue.rows[:count].clone())
    assert early == pytest.approx(task(batch).loss.item(), rel=1e-5)


def test_keys_have_statistics_of_their_own_and_drop_nothing(batch: Batch) -> None:
    task = small(norm="batch").train()
    before = {n: b.clone() for n, b in task.key_encoder.module.named_buffers() if n.endswith("running_mean")}
    assert before
    task(batch)
    own = dict(task.key_encoder.module.named_buffers())
    moved = {n: own[n].clone() for n in before}
    assert all(not torch.equal(before[n], moved[n]) for n in before)
    task.after_step(0.5)
    assert all(torch.equal(own[n], moved[n]) for n in before), "not those of the queries"


def test_batch_norm_in_the_head_refuses_one_sample(batch: Batch) -> None:
    one = Batch({n: x[:1] for n, x in batch.inputs.items()}, batch.index[:1], batch.seed, batch.step)
    with pytest.raises(UserError, match="batch of 1 has no variance"):
        small(norm="batch").train()(one)


def test_each_version_has_its_papers_settings() -> None:
    two, three = MoCo.Config(), MoCo.Config(version=3)
    assert (two.hidden, two.out, two.layers, two.norm, two.momentum, two.queue) == (2048, 128, 2, "none", 0.999, 65536)
    assert (three.hidden, three.out, three.layers, three.norm, three.momentum) == (4096, 256, 3, "batch", 0.99)
    assert MoCo.Config(version=3, out=64, norm="none").out == 64
    for config in (two, three):
        assert settings.from_json(MoCo.Config, settings.to_json(config)) == config
    second, third = small(view={"crop_scale": [0.5, 1.0]}), small(3)
    assert [(v.crop_scale, v.brightness, v.hue) for v in second.views] == [((0.5, 1.0), 0.4, 0.1)] * 2
    assert [(v.saturation, v.solarise) for v in third.views] == [(0.2, 0.0), (0.2, 0.2)]
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in second.head)
    assert isinstance(third.head[-1], torch.nn.BatchNorm1d)
    assert isinstance(third.predictor[-1], torch.nn.Linear), "of a ResNet"
    assert isinstance(small(3, "vit_micro").predictor[-1], torch.nn.BatchNorm1d)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"version": 1}, "'version' is 1; it must be one of 2, 3"),
    ({"momentum": 1.0}, r"'pretext.momentum' is 1.0; it must be in \[0, 1\)"),
    ({"queue": 0}, "'pretext.queue' is 0; it must be above 0"),
    ({"temperature": -1.0}, "'pretext.temperature' is -1.0; it must be above 0"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings.from_json(MoCo.Config, given)
