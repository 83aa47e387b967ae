"""Inpainting: what is hidden, the loss on it, and which gradients of the adversarial loss go where."""

import copy
import math

import pytest
import torch

from selftaught.batch import Batch
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality
from selftaught.pretext import find
from selftaught.pretext.inpainting import Inpainting, around
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig
from tests.contracts.conftest import SIZE, make


def gradients(task: Inpainting, loss: torch.Tensor, part: str) -> list[torch.Tensor | None]:
    parameters = [p for n, p in task.named_parameters() if n.startswith(part)]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


@pytest.mark.parametrize(("region", "overlap"), [("random", 0), ("centre", 0), ("random", 2), ("centre", 2)])
def test_loss_is_the_published_one(batch: Batch, region: str, overlap: int) -> None:
    task = make("inpainting", region=region, overlap=overlap).eval()
    assert isinstance(task, Inpainting)
    step = task(batch)
    step.loss.backward()
    parameter = task.decoder.layers[-1].weight
    given = parameter.grad.clone()

    x = task.modality.view(batch, task.view, stream=1)
    holes = task.hidden(batch)[:, 0].tolist()
    read = x.clone()
    for i, hole in enumerate(holes):
        for r in range(SIZE):
            for c in range(SIZE):
                if hole[r][c]:
                    read[i, :, r, c] = 0
    made = task.decoder(task.encoder(read).tokens).double()
    total = torch.zeros((), dtype=torch.float64)
    for i, hole in enumerate(holes):
        weights, errors = 0.0, torch.zeros((), dtype=torch.float64)
        for r in range(SIZE):
            for c in range(SIZE):
                near = any(
                    hole[a][b]
                    for a in range(max(0, r - overlap), min(SIZE, r + overlap + 1))
                    for b in range(max(0, c - overlap), min(SIZE, c + overlap + 1))
                )
                weight = 1 if hole[r][c] else 10 if near else 0
                weights += weight
                errors = errors + weight * (made[i, 0, r, c] - x[i, 0, r, c].double()) ** 2
        total = total + errors / weights
    expected = total / len(holes)
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(given, torch.autograd.grad(expected, parameter)[0].float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("region", ["random", "centre"])
def test_hidden_pixels_do_not_reach_the_encoder(batch: Batch, region: str) -> None:
    """Changing them changes the target alone; changing seen ones changes what is read, and no target."""
    task = make("inpainting", region=region).eval()
    x, hidden, reads = task.drawn(batch)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    view = task.modality.view
    loss = task(batch).loss
    task.modality.view = lambda *_, **__: torch.where(hidden, noise, x)  # type: ignore[method-assign]
    _, again, changed = task.drawn(batch)
    assert torch.equal(hidden, again)
    assert torch.equal(changed, reads)
    assert task(batch).loss != loss
    task.modality.view = view  # type: ignore[method-assign]

    # The loss counts hidden pixels only: with what is read held, seen pixels may be anything.
    encoder = task.encoder
    task.encoder = Fixed(encoder(reads))
    kept = task(batch).loss
    assert kept.item() == pytest.approx(loss.item())
    task.modality.view = lambda *_, **__: torch.where(hidden, x, noise)  # type: ignore[method-assign]
    assert torch.equal(task(batch).loss, kept)


class Fixed(torch.nn.Module):
    """An encoder that says the same whatever it reads."""

    def __init__(self, said: object) -> None:
        super().__init__()
        self.said = said

    def forward(self, x: torch.Tensor) -> object:
        return self.said


def test_what_is_hidden() -> None:
    many = Batch({}, torch.arange(3000), 1, 0)
    task = make("inpainting", region="centre")
    hole = task.hidden(many)
    assert hole[:, :, 4:12, 4:12].all()
    assert hole.sum() == 3000 * 64
    task = make("inpainting")
    share = task.hidden(many).float().mean((1, 2, 3))
    assert share.max() <= 1 / 4
    assert share.min() >= 9 / 256  # all five blocks, 3 x 3 pixels here, in one place
    assert len(share.unique()) > 10
    assert task.hidden(many).any(0).all()  # any pixel may be hidden


def test_the_rim_is_seen_and_next_to_the_hole() -> None:
    hole = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    hole[..., 2:4, 3:5] = True
    rim = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    rim[..., 1:5, 2:6] = True
    assert torch.equal(around(hole, 1), rim & ~hole)


def test_the_discriminators_gradient_stays_with_it(batch: Batch) -> None:
    """And the gradient of fooling it does not reach it: both would otherwise give way to each other."""
    task = make("inpainting", adversarial=0.1).eval()
    x, hidden, reads = task.drawn(batch)
    made = task.decoder(task.encoder(reads).tokens)
    fool, tell, _ = task.contest(x * hidden, made * hidden)
    for part in ("encoder", "decoder"):
        assert all(g is None for g in gradients(task, tell, part))
        assert any(g is not None and g.abs().max() > 0 for g in gradients(task, fool, part))
    assert all(g is None for g in gradients(task, fool, "discriminator"))
    assert all(g is not None and g.abs().max() > 0 for g in gradients(task, tell, "discriminator"))


def test_adversarial_loss_is_the_published_one(batch: Batch) -> None:
    """Equations 2 and 3, of which each player has its own gradient; the value is that of the joint loss."""
    task = make("inpainting", adversarial=0.1).eval()
    step = task(batch)
    step.loss.backward()
    given = {n: p.grad.clone() for n, p in task.named_parameters()}
    x, hidden, reads = task.drawn(batch)
    made = task.decoder(task.encoder(reads).tokens)
    fixed = copy.deepcopy(task.discriminator).requires_grad_(False)
    error, fool, tell = 0.0, 0.0, 0.0
    for i in range(len(batch)):
        hole = hidden[i, 0]
        error = error + ((made[i, 0] - x[i, 0])[hole].double() ** 2).mean()
        of_made, of_real = made[i : i + 1] * hole, x[i : i + 1] * hole
        fool = fool - torch.log(torch.sigmoid(fixed(of_made).double()))[0]
        real, fake = (torch.sigmoid(task.discriminator(t).double()) for t in (of_real, of_made.detach()))
        tell = tell - (torch.log(real) + torch.log(1 - fake))[0]
    n = len(batch)
    joint = (0.9 * error + 0.1 * fool) / n
    assert step.loss.item() == pytest.approx(joint.item(), rel=1e-4)
    assert step.metrics["discriminator"].item() == pytest.approx(tell.item() / n, rel=1e-4)
    assert step.metrics["error"].item() == pytest.approx(error.item() / n, rel=1e-4)
    (joint + tell / n).backward(inputs=list(task.parameters()))
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter.grad - given[name], given[name], rtol=2e-3, atol=1e-5)


def test_one_optimiser_trains_both_players(batch: Batch) -> None:
    trainer = Trainer(
        make("inpainting", adversarial=0.1, region="centre"),
        TrainConfig(steps=40, batch=len(batch), optim=OptimConfig(lr=1e-3, warmup=0.0)),
        Ranks(),
    )
    first = trainer.train_step(batch)
    for _ in range(29):
        last = trainer.train_step(batch)
    assert first["discriminator"] == pytest.approx(2 * math.log(2), rel=0.1)
    assert last["discriminator"] < 0.7 * first["discriminator"]
    assert last["error"] < first["error"]
    trainer.task.zero_grad()
    trainer.task(batch).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trainer.task.parameters())


def test_the_hole_alone_is_filled_in(batch: Batch) -> None:
    task = make("inpainting").eval()
    x, hidden, _ = task.drawn(batch)
    made = task.filled(batch)
    assert torch.equal(made[~hidden], x[~hidden])
    assert not torch.equal(made[hidden], x[hidden])


@pytest.mark.parametrize("size", [16, 28, 33])
def test_pictures_of_any_size(size: int) -> None:
    """28 px halve to a grid of 4 x 4, which 7 doublings do not bring back: the map is resampled."""
    like = make("inpainting")
    modality = type(like.modality)(size, 1, (0.3,), (0.37,))
    task = Inpainting(build(EncoderConfig("resnet10_x0.25", size, 1), 0), modality, Inpainting.Config())
    pixels = torch.randint(0, 256, (2, 1, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    batch = Batch(modality.inputs(pixels), torch.arange(2), 0, 0)
    assert task.filled(batch).shape == (2, 1, size, size)
    assert torch.isfinite(task(batch).loss)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="adversarial' is 1; it must be 0 or more, and below 1"):
        make("inpainting", adversarial=1)
    with pytest.raises(UserError, match="overlap' is -1; it must be 0 or more"):
        make("inpainting", overlap=-1)
    with pytest.raises(UserError, match=r"view.size' is 48; .* encoder's 16 px; .*use --size 48"):
        make("inpainting", view={"size": 48})


@pytest.mark.parametrize(
    ("encoder", "weight"), [("test_convnext", "head.norm"), ("mobilenetv3_small_050", "conv_head")]
)
@pytest.mark.parametrize("name", ["inpainting", "colorization"])
def test_encoders_that_tokens_cannot_teach_are_refused(name: str, encoder: str, weight: str) -> None:
    """What is behind the tokens would get no gradient."""
    kind, said = find(name), rf"'{encoder}' has weights .* \(model.{weight}.*; use a resnet\* or vit_\* encoder"
    built = build(EncoderConfig(encoder, 32, 3), 0)
    with pytest.raises(UserError, match=said):
        kind(built, ImageModality(32, 3, (0.3,) * 3, (0.37,) * 3), kind.Config())


@pytest.mark.parametrize("encoder", ["resnet10_x0.25", "vit_micro", "efficientnet_lite0"])
def test_all_weights_of_other_encoders_are_taught(batch: Batch, encoder: str) -> None:
    """What DDP asks for; and looking leaves the encoder as it was."""
    task = make("inpainting", encoder)
    assert all(module.training for module in task.modules())
    task(batch).loss.backward()
    assert [n for n, p in task.named_parameters() if p.grad is None] == []
    fresh = build(task.encoder.config, 0).state_dict()
    kept = make("inpainting", encoder).encoder.state_dict()
    assert all(torch.equal(kept[n], x) for n, x in fresh.items())
