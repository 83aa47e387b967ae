"""SimMIM against equation 1 of its paper."""

import dataclasses

import pytest
import torch

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.modality.image.masks import cell_masking
from selftaught.modality.image.units import patchify, unpatchify
from selftaught.pretext.simmim import SimMIM
from tests.contracts.conftest import make


def hidden_of(task: SimMIM, batch: Batch) -> torch.Tensor:
    rows, columns = task.encoder.grid
    noise = batch.uniform(91, rows * columns // task.side**2)
    return cell_masking(noise, task.config.mask, task.side, task.encoder.grid)


@pytest.mark.parametrize("settings", [{}, {"normalise": True}, {"block": 2, "mask": 0.3}])
def test_loss_is_the_published_one(batch: Batch, settings: dict[str, object]) -> None:
    """The sum of |x - y| over hidden pixels and channels, divided by their number: in value and gradient."""
    task = make("simmim", **settings).eval()
    assert isinstance(task, SimMIM)
    loss = task(batch).loss
    loss.backward()
    x = task.modality.view(batch, task.view, stream=1)
    p, hidden = task.encoder.patch, hidden_of(task, batch)
    tokens = task.encoder(x, hide=(hidden, task.mask_token)).tokens.detach()
    weight = task.predict.weight.detach().double().requires_grad_()
    guess = tokens.double() @ weight.T + task.predict.bias.detach().double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    columns = task.encoder.grid[1]
    for i in range(len(x)):
        for n in hidden[i].nonzero().flatten().tolist():
            top, left = n // columns * p, n % columns * p
            patch = x[i, :, top : top + p, left : left + p].double()
            if task.config.normalise:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total = total + (patch.permute(1, 2, 0).flatten() - guess[i, n]).abs().sum()
            count += patch.numel()
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-5)
    naive = torch.autograd.grad(total / count, weight)[0]
    assert task.predict.weight.grad is not None
    torch.testing.assert_close(task.predict.weight.grad.double(), naive, rtol=1e-4, atol=1e-6)


def test_visible_pixels_cost_nothing(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The known failure: a loss that counts what the encoder was shown. Neither a wrong guess of a visible patch nor another
    target there changes the loss; both do where a patch is hidden."""
    task = make("simmim").eval()
    assert isinstance(task, SimMIM)
    x, target, hidden = task.drawn(batch)
    loss, guess = task(batch).loss, task.predict.forward
    for where, counts in ((~hidden, False), (hidden, True)):
        monkeypatch.setattr(task, "drawn", lambda b, w=where: (x, target + 5 * w[..., None], hidden))
        assert torch.equal(task(batch).loss, loss) != counts
        monkeypatch.setattr(task, "drawn", lambda b: (x, target, hidden))
        monkeypatch.setattr(task.predict, "forward", lambda tokens, w=where: guess(tokens) + 5 * w[..., None])
        assert torch.equal(task(batch).loss, loss) != counts
        monkeypatch.setattr(task.predict, "forward", guess)


def test_the_encoder_never_reads_hidden_pixels(batch: Batch) -> None:
    task = make("simmim").eval()
    assert isinstance(task, SimMIM)
    x, patches, hidden = task.drawn(batch)
    other = unpatchify(torch.where(hidden[..., None], 7.0, patches), task.encoder.patch, task.encoder.grid)
    assert not torch.equal(x, other)
    one, two = (task.encoder(picture, hide=(hidden, task.mask_token)).tokens for picture in (x, other))
    assert torch.equal(one, two)
    assert not torch.equal(task.encoder(x).tokens, task.encoder(other).tokens)


@pytest.mark.parametrize("mask", [0.0, 1.0, -0.1])
def test_without_hidden_or_visible_patches_there_is_no_task(mask: float) -> None:
    with pytest.raises(UserError, match=r"'pretext.mask' is .*must be between 0 and 1"):
        make("simmim", mask=mask)


def test_another_step_hides_other_patches_and_the_same_share(batch: Batch) -> None:
    task = make("simmim")
    assert isinstance(task, SimMIM)
    one, two = hidden_of(task, batch), hidden_of(task, dataclasses.replace(batch, step=6))
    assert not torch.equal(one, two)
    assert {int(n) for n in torch.cat([one, two]).sum(1)} == {39}  # of 64, rounded up
    shown = task.show(batch)
    assert shown.shares["patches hidden"].part == one.sum()
    left = patchify(shown.seen[1].read, task.encoder.patch)
    assert not left[one].any()
    assert torch.equal(left[~one], patchify(shown.seen[0].read, task.encoder.patch)[~one])


def test_an_encoder_that_cannot_hide_is_refused() -> None:
    with pytest.raises(UserError, match=r"encoder that can hide.*vit_micro"):
        make("simmim", "resnet10_x0.25")
