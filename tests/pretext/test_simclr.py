"""SimCLR against equation 1 of its paper, on the task's own views."""

import dataclasses
import math

import pytest
import torch

from selftaught.batch import Batch
from selftaught.pretext.simclr import SimCLR
from tests.contracts.conftest import batch_of, make


@pytest.mark.parametrize("name", ["simclr", "dcl"])
def test_loss_is_the_published_one(batch: Batch, name: str) -> None:
    task = make(name, temperature=0.2).eval()
    loss = task(batch).loss
    views = [task.modality.view(batch, task.views[0], stream) for stream in (1, 2)]
    z = torch.cat([task.head(task.encoder(v).pooled) for v in views]).double()
    z = z / z.norm(dim=1, keepdim=True)
    n, total = len(batch), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        s = torch.exp(z @ z[i] / 0.2)
        others = [k for k in range(2 * n) if k != i and not (name == "dcl" and k == j)]
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
    one, two = (task.modality.view(batch, task.views[0], stream) for stream in (1, 2))
    assert not torch.equal(one, two)
    again = task.modality.view(dataclasses.replace(batch), task.views[0], 1)
    assert torch.equal(one, again)


def test_two_crops_of_a_text_are_views_as_those_of_a_picture(batch: Batch) -> None:
    """The same file serves texts: the formula on views of different lengths, padded together."""
    texts = batch_of("mlm")
    like = make("mlm")
    task = SimCLR(like.encoder, like.modality, SimCLR.Config(temperature=0.2, view={"crop": [0.3, 0.7]})).eval()
    loss = task(texts).loss
    views = [task.modality.view(texts, task.views[0], stream) for stream in (1, 2)]
    assert views[0].ids.shape != views[1].ids.shape
    z = torch.cat([task.head(task.encoder(v).pooled) for v in views])
    z = torch.nn.functional.normalize(z.double())
    logits = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    target = torch.arange(2 * len(texts)).roll(len(texts))
    expected = torch.nn.functional.cross_entropy(logits, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_far_positives_weigh_more(batch: Batch) -> None:
    """DCLW: the paper's weights, over the pairs of the batch (mean 1), multiply the positives."""
    task = make("dcl", temperature=0.2, sigma=0.5).eval()
    z1, z2 = (torch.nn.functional.normalize(z.double(), dim=1) for z in task.projected(batch))
    cosine = (z1 * z2).sum(1)
    density = (cosine / 0.5).exp()
    weight = 2 - density / density.mean()
    plain = make("dcl", temperature=0.2).eval()(batch).loss
    expected = plain + ((1 - weight) * cosine / 0.2).mean()
    assert task(batch).loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert weight.mean().item() == pytest.approx(1)
