"""Rotation prediction against the formula of its paper."""

import math

import numpy as np
import pytest
import torch

from selftaught.batch import Batch
from tests.contracts.conftest import make


def test_loss_is_the_published_one(batch: Batch) -> None:
    """Equation 2: the mean over pictures and the four rotations of -log p(rotation)."""
    task = make("rotation").eval()
    step = task(batch)
    step.loss.backward()
    x = task.modality.view(batch, task.view, stream=1)
    total, right = 0.0, 0
    for picture in x:
        for k in range(4):
            turned = torch.from_numpy(np.rot90(picture.numpy(), k, axes=(1, 2)).copy())
            scores = task.head(task.encoder(turned[None]).pooled)[0].double()
            total += -math.log(torch.softmax(scores, 0)[k].item())
            right += int(scores.argmax() == k)
    assert step.loss.item() == pytest.approx(total / (4 * len(x)), rel=1e-4)
    assert step.metrics["accuracy"].item() == pytest.approx(right / (4 * len(x)))


def test_one_copy_draws_each_orientation_equally(batch: Batch) -> None:
    task = make("rotation", copies=1).eval()
    assert torch.isfinite(task(batch).loss)
    x, y = task.drawn(batch)
    plain = task.modality.view(batch, task.view, stream=1)
    assert set(y.tolist()) == {0, 1, 2, 3}
    for turned, picture, k in zip(x, plain, y.tolist(), strict=True):
        assert torch.equal(turned, torch.rot90(picture, k, dims=(1, 2)))
    drawn = torch.cat([(Batch({}, torch.arange(500), 0, s).uniform(2, 1)[:, 0] * 4).long() for s in range(8)])
    counts = torch.bincount(drawn, minlength=4).float()
    assert ((counts - 1000).abs() < 110).all(), counts  # four standard deviations


def test_without_learning_it_is_at_chance(batch: Batch) -> None:
    task = make("rotation")
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    assert task(batch).loss.item() == pytest.approx(task.chance(len(batch)))
