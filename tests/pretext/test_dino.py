"""DINO against the equations of its paper, written out in loops, and what happens without centring."""

import math
from typing import Any

import pytest
import torch

from selftaught.batch import Batch
from selftaught.ema import cosine
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality
from selftaught.pretext.dino import DINO
from selftaught.train.config import OptimConfig, TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from tests.contracts.conftest import make

SMALL: dict[str, Any] = {"prototypes": 32, "hidden": 48, "out": 16, "local": 2}


def small(**settings: Any) -> DINO:
    task = make("dino", **{**SMALL, **settings})
    assert isinstance(task, DINO)
    return task


def naive_loss(student: torch.Tensor, teacher: torch.Tensor, centre: torch.Tensor, hot: float) -> torch.Tensor:
    """Algorithm 1: for each view of the teacher, the others of the student."""
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for t in range(2):
        for v in range(len(student)):
            if v == t:
                continue
            pairs += 1
            for n in range(student.shape[1]):
                p = torch.exp((teacher[t, n] - centre) / hot)
                q = torch.exp(student[v, n] / 0.1)
                total = total - (p / p.sum() * torch.log(q / q.sum())).sum() / student.shape[1]
    return total / pairs


def test_loss_and_gradient_are_the_published_ones(batch: Batch) -> None:
    task = small().eval()
    task.centre.value.copy_(torch.randn(32, generator=torch.Generator().manual_seed(0)) * 0.1)
    with torch.no_grad():  # a teacher that differs from its student
        for p in task.teacher.parameters():
            p.mul_(1.1)
    task.progress.fill_(0.15)  # half of the warm-up: between .04 and .07
    loss, metrics = task(batch)
    loss.backward()
    views = task.drawn(batch)
    encoder, head, prototypes = task.teacher.module.children()
    c = task.prototypes.weight.detach().double().requires_grad_()
    with torch.no_grad():
        z = torch.stack([task.head(task.encoder(v).pooled) for v in views]).double()
        teacher = torch.stack([prototypes(head(encoder(v).pooled)) for v in views[:2]]).double()
    student = z / z.norm(dim=-1, keepdim=True) @ (c / c.norm(dim=1, keepdim=True)).T
    expected = naive_loss(student, teacher, task.centre.value.double(), 0.055)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    assert task.prototypes.weight.grad is not None
    torch.testing.assert_close(task.prototypes.weight.grad, c.grad.float(), rtol=1e-3, atol=1e-6)
    target = ((teacher - task.centre.value.double()) / 0.055).softmax(-1)
    assert metrics["teacher_entropy"].item() == pytest.approx(-(target * target.log()).sum(-1).mean().item(), rel=1e-4)
    assert not any(p.grad is not None for p in task.teacher.parameters())


def trained(batch: Batch, steps: int, centre_momentum: float) -> dict[str, float]:
    task = small(
        local=0, norm="batch", freeze=0.0, momentum=0.9, centre_momentum=centre_momentum,
        teacher_start=0.02, teacher_temperature=0.02,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 1e-3)
    for step in range(steps):
        loss, metrics = task(Batch(batch.inputs, batch.index, 0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step / steps)
    return {name: value.item() for name, value in {"loss": loss, **metrics}.items()}


def test_without_centring_all_pictures_go_to_one_prototype(batch: Batch) -> None:
    """The known collapse of a sharp teacher (section 5.3): its centre stays 0 where nothing moves it."""
    without, with_centre = (trained(batch, 90, momentum) for momentum in (1.0, 0.9))
    assert without["prototypes_used"] < 1.1
    assert without["loss"] < 0.1
    assert with_centre["prototypes_used"] > 3
    assert with_centre["loss"] > 1


def test_the_centre_is_the_moving_mean_of_what_the_teacher_said(batch: Batch) -> None:
    task = small().eval()
    encoder, head, prototypes = task.teacher.module.children()
    with torch.no_grad():
        said = torch.cat([prototypes(head(encoder(v).pooled)) for v in task.drawn(batch)[:2]]).mean(0)
    task(batch)
    task.after_step(0.1)
    assert not task.centre.value.any()  # held-out samples do not move it
    task.train()
    for part in task.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    task(batch)
    assert not task.centre.value.any()
    task.after_step(0.2)
    torch.testing.assert_close(task.centre.value, said * 0.1, rtol=1e-4, atol=1e-6)
    task(batch)
    task(Batch(batch.inputs, batch.index, batch.seed, batch.step))  # two micro-batches of one step
    task.after_step(0.3)
    assert not task.centre._seen


def test_the_teacher_follows_by_the_schedule(batch: Batch) -> None:
    task = small(momentum=0.9)
    start = task.teacher.module[2].weight.clone()
    with torch.no_grad():
        task.prototypes.weight.add_(1.0)
    task.after_step(0.5)
    moved = (task.teacher.module[2].weight - start).mean().item()
    assert moved == pytest.approx(1 - cosine(0.9, 1.0, 0.5), rel=1e-4)
    task.after_step(1.0)
    assert (task.teacher.module[2].weight - start).mean().item() == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize(("progress", "hot"), [(0.0, 0.04), (0.15, 0.055), (0.3, 0.07), (1.0, 0.07)])
def test_the_teacher_warms_up(progress: float, hot: float) -> None:
    task = small()
    task.progress.fill_(progress)
    scores = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(task.targets(scores, task.centre), (scores / hot).softmax(-1), rtol=1e-4, atol=1e-7)


def test_prototypes_are_frozen_at_first(batch: Batch) -> None:
    task = small(freeze=0.2)
    trainer = Trainer(task, TrainConfig(steps=10, batch=24, optim=OptimConfig(lr=1e-3, warmup=0.0)), Ranks())
    start, weight = task.prototypes.weight.detach().clone(), task.prototypes.weight
    for step in range(3):
        trainer.train_step(Batch(batch.inputs, batch.index, 0, step))
        # A step with a gradient of zero would count: the first true one would then be several times too long.
        assert (weight in trainer.optimizer.state) == (step == 2)
        assert torch.equal(weight, start) == (step < 2)
    assert trainer.optimizer.state[weight]["step"] == 1


def test_the_teacher_drops_nothing(batch: Batch) -> None:
    """Stochastic depth is the student's alone, as in the authors' code."""
    task = make("dino", "vit_micro", **SMALL)
    assert isinstance(task, DINO)
    task.encoder.model.blocks[0].attn.proj_drop.p = 0.5
    from selftaught.pretext.distillation import taught_by

    teacher = taught_by(task.encoder, momentum=0.9)
    x = task.drawn(batch)[0]
    one, two = (teacher.module[0](x).pooled for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(task.encoder(x).pooled, task.encoder(x).pooled)


def test_half_of_the_small_crops_are_blurred() -> None:
    """Known failure: they had the blur of the second global view, one in ten."""
    encoder = build(EncoderConfig("resnet10_x0.25", 64, 3))
    modality = ImageModality(64, 3, (0.5,) * 3, (0.2,) * 3)
    for changes, blur in ((None, 0.5), ({"blur": 0.3}, 0.3), ({"blur": 0.0}, 0.0)):
        task = DINO(encoder, modality, DINO.Config(hidden=32, out=16, prototypes=32, view=changes))
        assert task.local_view.blur == blur
        assert task.local_view.crop_scale == (0.05, 0.4)
    assert DINO(encoder, modality, DINO.Config(hidden=32, out=16, prototypes=32)).views[1].blur == 0.1


def test_chance_is_a_uniform_guess() -> None:
    assert small().chance(8) == pytest.approx(math.log(32))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"prototypes": 0}, "prototypes"), ({"warmup": 0.0}, "warmup"), ({"momentum": 1.5}, "momentum")],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"pretext.{words}"):
        DINO.Config(**settings)
