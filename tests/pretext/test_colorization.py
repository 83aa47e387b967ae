"""Colorization: the loss, the weights of rare colours, and that no colour reaches the encoder."""

import dataclasses

import pytest
import torch

from selftaught.batch import Batch
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality
from selftaught.modality.image.lab import lab_to_rgb, rgb_to_lab
from selftaught.pretext.colorization import Colorization, rebalancing
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig
from tests.contracts.conftest import SIZE, batch_of, make


@pytest.fixture
def coloured() -> Batch:
    return batch_of("colorization")


def pictures(pixels: torch.Tensor) -> Batch:
    """Pictures [n, 3, SIZE, SIZE] in [0, 1] as a batch."""
    modality = ImageModality(SIZE, 3, (0.0,) * 3, (1.0,) * 3)
    return Batch(modality.inputs((pixels * 255).round().to(torch.uint8)), torch.arange(len(pixels)), 0, 0)


def test_loss_is_the_published_one(coloured: Batch) -> None:
    task = make("colorization").eval()
    assert isinstance(task, Colorization)
    task.counts += torch.arange(len(task.bins)) ** 2
    step = task(coloured)
    step.loss.backward()
    parameter = task.decoder.layers[-1].weight
    given = parameter.grad.clone()

    bins = task.bins.double()
    p = task.counts.double() / task.counts.sum()
    smoothed = torch.zeros(len(bins), dtype=torch.float64)
    for q in range(len(bins)):
        kernel = torch.exp(-(bins - bins[q]).square().sum(1) / (2 * 5.0**2))
        smoothed += p[q] * kernel / kernel.sum()
    weight = 1 / (0.5 * smoothed + 0.5 / len(bins))
    weight = weight / (smoothed * weight).sum()

    rgb = (task.modality.view(coloured, task.view, stream=1) * 0.37 + 0.3).clamp(0, 1)
    lab = rgb_to_lab(rgb.double())
    logits = task.decoder(task.encoder(task.drawn(coloured).reads).tokens).double()
    terms, right = [], 0
    for i in range(len(coloured)):
        for r in range(4):
            for c in range(4):  # areas of 4 x 4 pixels
                ab = lab[i, 1:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean((1, 2))
                distance = (bins - ab).square().sum(1)
                near = distance.argsort()[:5]
                z = torch.zeros(len(bins), dtype=torch.float64)
                z[near] = torch.exp(-distance[near] / (2 * 5.0**2))
                z /= z.sum()
                surprise = -(z * torch.log_softmax(logits[i, :, r, c], 0)).sum()
                terms.append(weight[near[0]] * surprise)
                right += int(logits[i, :, r, c].argmax() == near[0])
    expected = torch.stack(terms).mean()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert step.metrics["accuracy"].item() == pytest.approx(right / len(terms))
    torch.testing.assert_close(given, torch.autograd.grad(expected, parameter)[0].float(), rtol=1e-3, atol=1e-5)


def test_the_encoder_sees_no_colour() -> None:
    """Pictures that differ in colour alone look the same to it."""
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(8, 1, SIZE, SIZE, generator=generator) * 10 + 55
    ab = (torch.rand(8, 2, SIZE, SIZE, generator=generator) - 0.5) * 40
    one, two = (lab_to_rgb(torch.cat([light, colour], 1)) for colour in (ab, -ab))
    assert 0 <= min(one.min(), two.min()) <= max(one.max(), two.max()) <= 1
    task = make("colorization", view={"crop_scale": None}).eval()
    first, second = (task.drawn(pictures(x)) for x in (one, two))
    assert (first.ab - second.ab).abs().max() > 5
    torch.testing.assert_close(first.reads, second.reads, rtol=0, atol=0.02)  # half a level of 255 is rounded away
    assert torch.equal(first.reads[:, 0], first.reads[:, 1])
    leaked = task.modality.view(pictures(one), task.view, 1) - task.modality.view(pictures(two), task.view, 1)
    assert leaked.abs().max() > 0.3


def test_weights_of_rare_colours() -> None:
    p = torch.tensor([0.9, 0.09, 0.01, 0.0])
    weight = rebalancing(p, 0.5)
    naive = torch.tensor([1 / (0.5 * x + 0.5 / 4) for x in p.tolist()])
    torch.testing.assert_close(weight, naive / (p * naive).sum())
    assert (p * weight).sum().item() == pytest.approx(1)
    assert (weight.diff() > 0).all()
    torch.testing.assert_close(rebalancing(p, 1.0), torch.ones(4))


def test_rebalancing_keeps_rare_colours_from_going_grey() -> None:
    """Grey pictures among which one in five is coloured, and nothing that tells: the best single prediction is greyer without
    the weights."""
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(20, 1, SIZE, SIZE, generator=generator) * 20 + 50
    ab = torch.zeros(20, 2, SIZE, SIZE)
    ab[::5] = torch.tensor([60.0, 40.0])[:, None, None]
    batch = pictures(lab_to_rgb(torch.cat([light, ab], 1)).clamp(0, 1))
    chroma = {}
    for uniform in (0.02, 1.0):
        task = make("colorization", view={"crop_scale": None}, uniform=uniform)
        for parameter in task.encoder.parameters():
            parameter.requires_grad_(False)
        optimizer = torch.optim.Adam(task.decoder.parameters(), lr=1e-2)
        for step in range(60):
            optimizer.zero_grad()
            task(batch).loss.backward()
            optimizer.step()
            task.after_step(step / 60)
        made = task.eval().colourised(batch) * 0.37 + 0.3
        chroma[uniform] = rgb_to_lab(made)[:, 1:].square().sum(1).sqrt().mean().item()
    assert chroma[0.02] > chroma[1.0] + 10, chroma


def test_colours_are_counted_while_training(coloured: Batch) -> None:
    task = make("colorization")
    assert torch.equal(task.weights(), torch.ones(len(task.bins)))
    trainer = Trainer(
        task, TrainConfig(steps=4, batch=len(coloured), accumulate=2, optim=OptimConfig(warmup=0.0)), Ranks()
    )
    trainer.train_step(coloured)
    assert task.counts.sum() == len(coloured) * 16
    assert task.met is None
    rare, common = task.counts.argmin(), task.counts.argmax()
    assert task.weights()[rare] > 1 > task.weights()[common]
    before = task.counts.clone()
    task.eval()(coloured)
    task.after_step(1.0)
    assert torch.equal(task.counts, before)


def test_the_predicted_picture(coloured: Batch) -> None:
    """L is the picture's; the colour of a sure prediction is that of its bin."""
    task = make("colorization").eval()
    last = task.decoder.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    chosen = int((task.bins - torch.tensor([10.0, -10.0])).square().sum(1).argmin())
    last.bias.data[chosen] = 50
    made = rgb_to_lab(task.colourised(coloured) * 0.37 + 0.3)
    light = task.drawn(coloured).light
    inside = (light[:, 0] > 30) & (light[:, 0] < 80)
    assert inside.float().mean() > 0.2
    torch.testing.assert_close(made[:, 0][inside], light[:, 0][inside], rtol=0, atol=0.1)
    torch.testing.assert_close(made[:, 1][inside], torch.full_like(made[:, 1][inside], 10.0), rtol=0, atol=0.3)
    torch.testing.assert_close(made[:, 2][inside], torch.full_like(made[:, 2][inside], -10.0), rtol=0, atol=0.3)


def test_what_is_refused(coloured: Batch) -> None:
    modality = ImageModality(SIZE, 1, (0.3,), (0.37,))
    with pytest.raises(UserError, match=r"the pictures have 1 channel; use pictures in RGB, or inpainting"):
        Colorization(build(EncoderConfig("resnet10_x0.25", SIZE, 1), 0), modality, Colorization.Config())
    with pytest.raises(UserError, match="uniform' is 0; it must be above 0, and 1 at most"):
        dataclasses.replace(Colorization.Config(), uniform=0)
    with pytest.raises(UserError, match="bin' is 2; it must be 5 to 40"):
        Colorization.Config(bin=2)
    with pytest.raises(UserError, match=r"view.size' is 48; .* encoder's 16 px; .*use --size 48"):
        make("colorization", view={"size": 48})
    with pytest.raises(UserError, match=r"neighbours' is 300, and there are 261 bins of side 10; use 261 or less"):
        make("colorization", neighbours=300)
    with pytest.raises(UserError, match=r"neighbours' is 30, and there are 23 bins of side 40; use 23 or less"):
        make("colorization", neighbours=30, bin=40)
    assert torch.isfinite(make("colorization", neighbours=23, bin=40)(coloured).loss)
