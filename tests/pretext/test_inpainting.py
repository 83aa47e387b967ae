"""Context encoders against equations 1 and 2 of their paper: what is hidden stays hidden, and who takes which gradient."""

import pytest
import torch

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.pretext.inpainting import Inpainting, around
from tests.contracts.conftest import make


def made(**settings: object) -> Inpainting:
    task = make("inpainting", **settings).eval()
    assert isinstance(task, Inpainting)
    return task


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("region", ["centre", "random"])
def test_loss_is_the_published_one(batch: Batch, region: str, overlap: int) -> None:
    """The squared error of hidden pixels, picture by picture, in value and in the gradient of what is predicted."""
    task = made(region=region, overlap=overlap)
    x, hidden, reads = task.drawn(batch)
    predicted = task.decoder(task.encoder(reads).tokens).detach().double().requires_grad_()
    rim = around(hidden, overlap) if overlap else torch.zeros_like(hidden)
    total = predicted.new_zeros(())
    for i in range(len(batch)):
        inside, seen = hidden[i, 0], rim[i, 0]
        error = (predicted[i] - x[i]).square().mean(0)
        total = total + (error[inside].sum() + 10 * error[seen].sum()) / (inside.sum() + 10 * seen.sum())
    expected = total / len(batch)
    (wanted,) = torch.autograd.grad(expected, predicted)
    taken: list[torch.Tensor] = []
    task.decoder.register_forward_hook(lambda part, given, out: out.register_hook(taken.append) and None)
    step = task(batch)
    step.loss.backward()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(taken[0].double(), wanted, rtol=1e-4, atol=1e-9)


def test_hidden_pixels_reach_nothing_but_the_target(batch: Batch) -> None:
    """The hole's pixels may be anything: what is read and predicted is the same, and the loss alone tells."""
    task = made()
    x, hidden, reads = task.drawn(batch)
    assert not (reads * hidden).any()
    assert torch.equal(reads[~hidden], x[~hidden])
    before = task.filled(batch)
    loss = task(batch).loss
    task.modality.view = lambda *_, **__: torch.where(hidden, x + 3.0, x)  # type: ignore[method-assign]
    assert torch.equal(task.drawn(batch)[2], reads)
    assert torch.equal(task.filled(batch), before)
    assert not torch.isclose(task(batch).loss, loss)


def test_seen_pixels_cost_nothing_without_an_overlap(batch: Batch) -> None:
    """An error where nothing is hidden does not change the loss; one in the hole does."""
    task = made(region="centre")
    hidden = task.hidden(batch)
    loss = task(batch).loss
    handle = task.decoder.register_forward_hook(lambda part, given, out: out + 7.0 * ~hidden)
    assert torch.equal(task(batch).loss, loss)
    handle.remove()
    task.decoder.register_forward_hook(lambda part, given, out: out + 7.0 * hidden)
    assert task(batch).loss > loss + 1


def test_what_is_hidden_is_as_asked(batch: Batch) -> None:
    centre = made(region="centre").hidden(batch)
    assert centre.float().mean().item() == pytest.approx(0.25)
    random = made().hidden(batch)
    assert 0.05 < random.float().mean().item() <= 0.25
    assert not torch.equal(random[0], random[1])
    rim = around(centre, 2)
    assert not (rim & centre).any()
    assert int(rim[0].sum()) == 12 * 12 - 8 * 8


def test_each_side_of_the_contest_takes_its_own_gradient(batch: Batch) -> None:
    """The discriminator's loss gives the pictures no gradient, and theirs gives it none (equation 2, one optimiser)."""
    task = made(adversarial=0.5)
    assert task.discriminator is not None
    real = torch.randn(4, 1, 16, 16)
    pictures = torch.randn(4, 1, 16, 16, requires_grad=True)
    fool, tell, metrics = task.contest(real, pictures)
    own = list(task.discriminator.parameters())
    (of_pictures,) = torch.autograd.grad(fool, pictures, retain_graph=True)
    assert of_pictures.abs().sum() > 0
    assert torch.autograd.grad(fool, own, retain_graph=True, allow_unused=True) == (None,) * len(own)
    assert torch.autograd.grad(tell, pictures, retain_graph=True, allow_unused=True) == (None,)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(tell, own))
    with torch.no_grad():
        of_real, of_made = (task.discriminator(x).double().sigmoid() for x in (real, pictures))
    expected = -of_real.log().mean() - (1 - of_made).log().mean()
    assert tell.item() == pytest.approx(expected.item(), rel=1e-4)
    assert fool.item() == pytest.approx(-of_made.log().mean().item(), rel=1e-4)
    assert 0 <= metrics["told apart"] <= 1
    x, hidden, reads = task.drawn(batch)
    guess = task.decoder(task.encoder(reads).tokens)
    error = (hidden * (guess - x).square().mean(1, keepdim=True)).sum((1, 2, 3)) / hidden.sum((1, 2, 3))
    fool, _, _ = task.contest(x * hidden, guess * hidden)
    assert task(batch).loss.item() == pytest.approx((0.5 * error.mean() + 0.5 * fool).item(), rel=1e-5)


@pytest.mark.parametrize("settings", [{"overlap": -1}, {"adversarial": 1.0}, {"adversarial": -0.1}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        Inpainting.Config(**settings)  # type: ignore[arg-type]
