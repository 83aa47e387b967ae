"""Causal language modelling against transformers' own loss, and what a token may see."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from selftaught.batch import Batch
from selftaught.pretext.clm import CLM
from tests.contracts.conftest import batch_of, make


@pytest.fixture
def batch() -> Batch:
    return batch_of("clm")


def test_loss_and_gradients_are_those_of_gpt2(batch: Batch) -> None:
    task = make("clm").eval()
    assert isinstance(task, CLM)
    model = GPT2LMHeadModel(GPT2Config(**task.encoder.model.config.to_dict())).eval()
    model.transformer.load_state_dict(task.encoder.model.state_dict())
    loss = task(batch).loss
    loss.backward()
    text = task.modality.plain(batch)
    labels = text.ids.masked_fill(~text.valid, -100)
    goes_on = ~batch.inputs["edges"][:, 1]  # its [SEP] is no end of a document
    labels[goes_on, text.valid.sum(1)[goes_on] - 1] = -100
    assert 0 < goes_on.sum() < len(batch)
    expected = model(input_ids=text.ids, attention_mask=text.valid.long(), labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    other = dict(model.transformer.named_parameters())
    for name, parameter in task.encoder.model.named_parameters():
        torch.testing.assert_close(parameter.grad, other[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_loss_is_the_formula(batch: Batch) -> None:
    task = make("clm").eval()
    assert isinstance(task, CLM)
    text = task.modality.plain(batch)
    hidden, table = task.encoder(text).tokens.double(), task.encoder.embeddings.double()
    total = [
        -torch.log_softmax(table @ hidden[row, at], 0)[text.ids[row, at + 1]]
        for row in range(len(batch))
        for at in range(int(text.valid[row].sum()) - 1 - int(not batch.inputs["edges"][row, 1]))
    ]
    assert abs(task(batch).loss.item() - torch.stack(total).mean().item()) < 1e-4


def test_a_token_sees_only_what_lies_before_it(batch: Batch) -> None:
    task = make("clm").eval()
    assert isinstance(task, CLM)
    text = task.modality.plain(batch)
    before = task.encoder(text).tokens
    later = text.ids.clone()
    later[:, 6:] = torch.where(text.valid[:, 6:], (later[:, 6:] + 3) % 500 + 5, later[:, 6:])
    after = task.encoder(text._replace(ids=later)).tokens
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after[:, 6:], before[:, 6:])
