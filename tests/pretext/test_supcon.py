"""SupCon against equation 2 of its paper, on the task's own views, and which labels it reads."""

import dataclasses
from pathlib import Path

import pytest
import torch

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.pretext.supcon import SupCon
from tests import runs
from tests.contracts.conftest import make


def like(batch: Batch, labels: torch.Tensor | None) -> Batch:
    return dataclasses.replace(batch, labels=labels)


def test_loss_is_the_published_one(batch: Batch) -> None:
    task = make("supcon", temperature=0.2, hidden=32).eval()
    assert isinstance(task, SupCon)
    assert batch.labels is not None
    labels = torch.where(torch.arange(len(batch)) % 3 == 0, -1, batch.labels)
    step = task(like(batch, labels))
    n = len(batch)
    z = torch.nn.functional.normalize(torch.cat(task.projected(batch)).double(), dim=1)
    total = z.new_zeros(())
    for i in range(2 * n):
        others = [a for a in range(2 * n) if a != i]
        same = [a for a in others if a % n == i % n or (labels[a % n] == labels[i % n] and labels[i % n] >= 0)]
        s = z @ z[i] / 0.2
        total = total + s[others].logsumexp(0) - s[same].mean()
    expected = total / (2 * n)
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.metrics["labelled"].item() == pytest.approx((labels >= 0).float().mean().item())
    weight = task.head[-1].weight
    (ours,), (naive,) = (torch.autograd.grad(x, weight) for x in (step.loss, expected))
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-6)


def test_no_labels_and_unknown_labels_are_simclr(batch: Batch) -> None:
    task = make("supcon").eval()
    simclr = make("simclr", temperature=0.1, hidden=task.config.hidden, norm="none").eval()
    simclr.load_state_dict(task.state_dict())
    for labels in (None, torch.full((len(batch),), -1)):
        step = task(like(batch, labels))
        assert torch.equal(step.loss, simclr(batch).loss)
        assert torch.equal(step.metrics["accuracy"], simclr(batch).metrics["accuracy"])
        assert step.metrics["labelled"].item() == 0
    assert not torch.equal(task(batch).loss, simclr(batch).loss)


def test_labels_that_are_not_used_are_not_read(batch: Batch) -> None:
    task = make("supcon", labels=0.5).eval()
    assert isinstance(task, SupCon)
    assert batch.labels is not None
    used = task.used(batch) >= 0
    assert 0 < used.sum() < len(batch)
    loss = task(batch).loss
    assert torch.equal(loss, task(like(batch, torch.where(used, batch.labels, (batch.labels + 1) % 10))).loss)
    assert torch.equal(loss, task(like(batch, torch.where(used, batch.labels, -1))).loss)
    assert not torch.equal(loss, task(like(batch, torch.where(used, (batch.labels * 7 + 1) % 3, batch.labels))).loss)


def test_whose_label_is_used_depends_on_the_sample_alone(batch: Batch) -> None:
    few, more = make("supcon", labels=0.1), make("supcon", labels=0.3)
    assert isinstance(few, SupCon)
    assert isinstance(more, SupCon)
    index = torch.arange(5000)
    samples = Batch({}, index, seed=1, step=2, labels=index % 10)
    used = few.used(samples)
    assert (used >= 0).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(used[used >= 0], (index % 10)[used >= 0])
    other = Batch({}, index.flip(0), seed=7, step=9, labels=(index % 10).flip(0))
    assert torch.equal(few.used(other).flip(0), used)
    assert (more.used(samples)[used >= 0] >= 0).all()  # a larger share has the samples of a smaller one
    assert torch.equal(make("supcon").used(samples), index % 10)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=rf"'pretext.labels' is {share}; it must be a share in \(0, 1\]"):
        SupCon.Config(labels=share)


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", 40)
    for file in sorted(data.rglob("*.png")):
        file.rename(data / f"{file.parent.name}-{file.name}")
    for folder in [f for f in data.iterdir() if f.is_dir()]:
        folder.rmdir()
    refused = runs.run("pretrain", data, "--pretext", "supcon", "--steps", 2, "--out", tmp_path / "run")
    assert "reads labels, and the data has none; use class folders" in runs.one_line(refused, 2)
    assert not (tmp_path / "run").exists()
