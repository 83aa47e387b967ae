"""SimCSE against equation 4 of its paper, and what happens without dropout, its only augmentation."""

import math

import pytest
import torch
from torch import nn

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.pretext.simcse import SimCSE
from tests.contracts.conftest import batch_of, make


@pytest.fixture
def batch() -> Batch:
    return batch_of("simcse")


def embeddings(task: SimCSE, batch: Batch) -> torch.Tensor:
    """Both views' projections [2N, D] as the task draws them after this seed."""
    torch.manual_seed(7)
    x = task.modality.plain(batch)
    h = task.encoder(task.modality.join([x, x]))
    return task.head(h.pooled if task.config.pooling == "mean" else h.tokens[:, 0])


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_loss_and_gradient_are_the_published_ones(batch: Batch, pooling: str) -> None:
    task = make("simcse", pooling=pooling).train()
    assert isinstance(task, SimCSE)
    torch.manual_seed(7)
    loss = task(batch).loss
    loss.backward()
    mine = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    task.zero_grad()
    one, two = embeddings(task, batch).chunk(2)
    similarity = nn.functional.cosine_similarity(one[:, None], two[None], dim=2) / 0.05
    expected = -(similarity.diagonal() - similarity.exp().sum(1).log()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_each_row_has_a_dropout_mask_of_its_own(batch: Batch) -> None:
    task = make("simcse").train()
    assert isinstance(task, SimCSE)
    one, two = embeddings(task, batch).chunk(2)
    assert ((one - two).abs().amax(1) > 1e-3).all()
    one, two = embeddings(task.eval(), batch).chunk(2)
    torch.testing.assert_close(one, two)


def test_one_embedding_for_all_texts_has_the_chance_loss_and_no_hits(batch: Batch) -> None:
    """What a collapsed encoder scores, and what the watchdog compares with."""
    task = make("simcse")
    nn.init.zeros_(task.head[0].weight)
    step = task(batch)
    assert step.loss.item() == pytest.approx(math.log(len(batch)), rel=1e-5)
    assert step.loss.item() == pytest.approx(task.chance(len(batch)), rel=1e-5)
    assert step.metrics["accuracy"].item() == 0


def test_an_encoder_without_dropout_is_refused() -> None:
    task = make("simcse")
    for module in task.encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with pytest.raises(
        UserError, match="pretext 'simcse' needs dropout, its only augmentation, and encoder 'bert_tiny'"
    ):
        SimCSE(task.encoder, task.modality, SimCSE.Config())
