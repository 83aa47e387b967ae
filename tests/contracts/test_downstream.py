"""What every mode of fine-tuning must do, on an encoder of pictures and one of text."""

import pytest
import torch
from torch import nn

from selftaught.batch import Batch
from selftaught.downstream.classify import Classify
from tests.contracts.conftest import batch_of, make

MODES = ("full", "head", "last1", "lora4")
TASKS = {"image": "mae", "text": "mlm"}  # whose encoder and data are taken


def classifier(kind: str, mode: str) -> tuple[Classify, Batch]:
    start, batch = make(TASKS[kind]), batch_of(TASKS[kind], 8)
    assert batch.labels is not None
    classes = int(batch.labels.max()) + 1
    torch.manual_seed(0)
    return Classify(start.encoder, start.modality, Classify.Config(classes, mode)), batch


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("mode", MODES)
def test_a_mode(kind: str, mode: str) -> None:
    """It starts from the encoder it was given, trains what it says, and predicts without randomness."""
    task, batch = classifier(kind, mode)
    start = make(TASKS[kind]).encoder.eval()
    x = task.modality.plain(batch)
    assert torch.equal(task.eval().encoder(x).pooled, start(x).pooled)
    task.train()
    assert not any(m.training for m in task.frozen)
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.01)
    start_loss = task.eval()(batch).loss.item()
    task.train()
    for _ in range(4):
        optimizer.zero_grad()
        task(batch).loss.backward()
        optimizer.step()
    changed = {n for n, p in task.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= {n for n, p in task.named_parameters() if p.requires_grad}
    assert "head.weight" in changed
    encoder = {n.removeprefix("encoder.") for n in changed if n.startswith("encoder.")}
    depth = task.encoder.depth
    layers = {task.encoder.layer_of(n) for n in encoder}
    expected = {"full": set(range(depth)), "head": set(), "last1": {depth - 1}, "lora4": set(range(1, depth))}
    assert layers - {depth} == expected[mode]  # what follows the last block is trained with it where there is any
    assert task.eval()(batch).loss.item() < start_loss  # without dropout
    found = task.predict(batch)
    assert torch.equal(found, task.predict(batch))
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_frozen_adds_no_noise(kind: str) -> None:
    """Dropout and stochastic depth are those of the layers that learn: a head learns from the features it is tested on."""
    task, batch = classifier(kind, "head")
    noisy(task.encoder)
    x = task.modality.plain(batch)
    expected = task.eval().encoder(x).pooled
    assert torch.equal(task.train().encoder(x).pooled, expected)


def test_the_last_blocks_of_a_vit_learn_in_training_mode() -> None:
    task, _ = classifier("image", "last1")
    task.train()
    blocks = task.encoder.model.blocks
    assert all(m.training for m in blocks[-1].modules())
    assert not any(m.training for m in blocks[0].modules())


def test_the_last_block_of_igpt_is_one_that_features_come_from() -> None:
    start, batch = make("igpt"), batch_of("igpt", 8)
    task = Classify(start.encoder, start.modality, Classify.Config(10, "last1"))
    task(batch).loss.backward()
    moved = {
        task.encoder.layer_of(n) for n, p in task.encoder.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert task.encoder.depth - 1 in moved
    assert moved <= {task.encoder.depth - 1, task.encoder.depth}


def noisy(encoder: nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
