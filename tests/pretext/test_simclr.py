"""SimCLR against equation 1 of its paper, on the task's own views."""

import dataclasses
import math

import pytest
import torch

from selftaught.batch import Batch
from tests.contracts.conftest import make


@pytest.mark.parametrize("decoupled", [False, True])
def test_loss_is_the_published_one(batch: Batch, decoupled: bool) -> None:
    task = make("simclr", temperature=0.2, decoupled=decoupled).eval()
    loss = task(batch).loss
    views = [task.modality.view(batch, task.view, stream) for stream in (1, 2)]
    z = torch.cat([task.head(task.encoder(v).pooled) for v in views]).double()
    z = z / z.norm(dim=1, keepdim=True)
    n, total = len(batch), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        s = torch.exp(z @ z[i] / 0.2)
        others = [k for k in range(2 * n) if k != i and not (decoupled and k == j)]
        total -= math.log(s[j].item() / sum(s[k].item() for k in others))
    assert loss.item() == pytest.approx(total / (2 * n), rel=1e-5)


def test_identical_features_give_the_chance_loss(batch: Batch) -> None:
    """What a collapsed encoder scores, and what the watchdog compares with."""
    task = make("simclr")
    last = task.head[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.ones_(last.bias)
    step = task(batch)
    assert step.loss.item() == pytest.approx(task.chance(len(batch)), rel=1e-5)
    assert step.metrics["accuracy"].item() == 0


def test_the_two_views_of_a_sample_differ(batch: Batch) -> None:
    task = make("simclr")
    one, two = (task.modality.view(batch, task.view, stream) for stream in (1, 2))
    assert not torch.equal(one, two)
    again = task.modality.view(dataclasses.replace(batch), task.view, 1)
    assert torch.equal(one, again)
