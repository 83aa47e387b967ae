"""ELECTRA against its equations written out, and what FACTS of its code must hold."""

import torch
from torch import nn

from selftaught.batch import Batch
from selftaught.modality.text.mask import hide
from selftaught.pretext.electra import ELECTRA, sample
from tests.contracts.conftest import batch_of, make


def test_loss_and_gradient_are_the_published_ones() -> None:
    task, batch = make("electra").eval(), batch_of("electra")
    assert isinstance(task, ELECTRA)
    step = task(batch)
    step.loss.backward()
    mine = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    task.zero_grad()
    text = task.modality.plain(batch)
    shown, chosen = hide(task.modality, text, batch, task.config)
    logits = task.generator(task.encoder, shown, chosen)
    u = batch.uniform(21, text.ids.shape[1])[chosen]
    with torch.no_grad():
        ids = text.ids.clone()
        for n, (row, column) in enumerate(chosen.nonzero().tolist()):
            cumulated = logits[n].double().softmax(0).cumsum(0)
            ids[row, column] = int((cumulated <= u[n].double()).sum())
    encoded = task.encoder(text._replace(ids=ids)).tokens
    generator = -logits.log_softmax(1)[torch.arange(len(logits)), text.ids[chosen]].mean()
    losses = []
    for row, column in text.valid.nonzero().tolist():
        p = task.head(encoded[row, column])[0].sigmoid()
        losses.append(-(p.log() if ids[row, column] != text.ids[row, column] else (1 - p).log()))
    expected = generator + 50 * torch.stack(losses).mean()
    torch.testing.assert_close(step.loss, expected, rtol=1e-5, atol=1e-4)
    expected.backward()
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_the_verdict_sends_no_gradient_into_the_generator() -> None:
    """Only embeddings are shared; sampling stops the gradient."""
    task, batch = make("electra", weight=1e6).eval(), batch_of("electra")
    assert isinstance(task, ELECTRA)
    task(batch).loss.backward()
    heavy = {n: p.grad.clone() for n, p in task.generator.named_parameters()}
    task.zero_grad()
    task.config = ELECTRA.Config(weight=1.0)
    task(batch).loss.backward()
    for name, parameter in task.generator.named_parameters():
        torch.testing.assert_close(heavy[name], parameter.grad)


def test_hidden_tokens_are_masked_or_kept_and_the_generator_is_a_quarter_as_wide() -> None:
    task = make("electra")
    assert isinstance(task, ELECTRA)
    masked = kept = 0
    for step in range(40):
        batch = Batch(batch_of("electra").inputs, torch.arange(24), seed=1, step=step)
        text = task.modality.plain(batch)
        shown, chosen = hide(task.modality, text, batch, task.config)
        masked += int((shown.ids[chosen] == task.modality.tokenizer.mask).sum())
        kept += int((shown.ids[chosen] == text.ids[chosen]).sum())
        assert torch.equal(shown.ids[~chosen], text.ids[~chosen])
    n = masked + kept  # nothing else: no random tokens
    assert abs(kept / n - 0.15) < 4 * (0.15 * 0.85 / n) ** 0.5
    assert task.generator.project.out_features == task.encoder.width // 4


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, -torch.inf]).repeat(40_000, 1)
    u = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(sample(logits, u), minlength=5) / 40_000
    torch.testing.assert_close(share, logits[0].softmax(0), rtol=0, atol=0.01)
    assert share[4] == 0


def test_a_perfect_generator_leaves_nothing_to_find() -> None:
    """What it samples is what was there, and that counts as original."""
    task, batch = make("electra").eval(), batch_of("electra")
    assert isinstance(task, ELECTRA)

    class Oracle(nn.Module):
        def forward(self, encoder, shown, chosen):
            ids = task.modality.plain(batch).ids[chosen]
            return 1000.0 * nn.functional.one_hot(ids, task.modality.tokenizer.vocabulary).float()

    task.generator = Oracle()
    assert task(batch).metrics["replaced"].item() == 0
