"""iGPT: the likelihood of its paper, by prefixes one at a time; what a guess may depend on; the encoder that it trains."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from selftaught import bundle
from selftaught.batch import Batch
from selftaught.encoders import EncoderConfig, build, choose
from selftaught.encoders.pixels import SIZES, PixelEncoder
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality
from selftaught.pretext.igpt import IGPT
from selftaught.workflow.kinds.images import Images
from tests.contracts.conftest import make, small_digits


def igpt(**settings: Any) -> IGPT:
    task = make("igpt", **settings)
    assert isinstance(task, IGPT)
    with torch.no_grad():
        for i, p in enumerate(task.parameters()):  # no symmetric beginning
            p.add_(0.02 * torch.sin(torch.arange(p.numel()) * 1.7 + i).view_as(p))
    return task.eval()


def encoder_of(name: str = "igpt_nano", size: int = 16, channels: int = 3, **options: Any) -> PixelEncoder:
    encoder = build(EncoderConfig(name, size, channels, options=options)).eval()
    assert isinstance(encoder, PixelEncoder)
    return encoder


def test_loss_is_the_likelihood_of_prefixes_one_at_a_time(batch: Batch) -> None:
    """-log p(x_i | x_1 ... x_i-1) by a network that is given no more than that prefix: value, and gradient of the head."""
    task = igpt()
    step = task(batch)
    step.loss.backward()
    _, colours = task.drawn(batch)
    pixels = colours.shape[1]
    assert pixels == 64
    weight = task.head.weight.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(pixels):
        unread = torch.zeros(len(colours), 1, dtype=torch.int64)
        with torch.no_grad():
            state = task.encoder.model(torch.cat([colours[:, :i], unread], 1))[0][:, i].double()
        scores = state @ weight.T
        for row in range(len(colours)):
            total = total - (scores[row, colours[row, i]] - scores[row].exp().sum().log())
    naive = total / (len(colours) * pixels)
    assert step.loss.item() == pytest.approx(naive.item(), rel=1e-5)
    assert task.head.weight.grad is not None
    gradient = torch.autograd.grad(naive, weight)[0]
    torch.testing.assert_close(task.head.weight.grad.double(), gradient, rtol=1e-3, atol=1e-6)
    assert step.metrics["bits_per_dim"].item() == pytest.approx(naive.item() / math.log(2), rel=1e-5)  # one channel


def test_bits_are_of_each_channel() -> None:
    """Of pictures in colour: three dimensions a pixel; all colours alike are log2(levels) bits in each."""
    modality = ImageModality(16, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    encoder = encoder_of(mean=list(modality.mean), std=list(modality.std))
    task = IGPT(encoder, modality, IGPT.Config()).eval()
    torch.nn.init.zeros_(task.head.weight)
    pixels = (torch.arange(4 * 3 * 16 * 16) * 37 % 256).view(4, 3, 16, 16).to(torch.uint8)
    step = task(Batch(modality.inputs(pixels), torch.arange(4), 0, 0))
    assert step.loss.item() == pytest.approx(task.chance(4)) == pytest.approx(math.log(512))
    assert step.metrics["bits_per_dim"].item() == pytest.approx(3.0)


def test_no_guess_depends_on_its_own_or_later_pixels(batch: Batch) -> None:
    """Causality, pixel by pixel; and what comes after does depend on it."""
    task = igpt()
    _, colours = task.drawn(batch)
    states = task.encoder.model(colours)[0]
    for k in (0, 1, 17, 62, 63):
        other = colours.clone()
        other[:, k] = (other[:, k] + 5) % task.encoder.colours
        changed = task.encoder.model(other)[0]
        torch.testing.assert_close(changed[:, : k + 1], states[:, : k + 1], rtol=0, atol=0)
        assert (changed[:, k + 1 :] - states[:, k + 1 :]).abs().amax((1, 2)).gt(1e-6).all() if k < 63 else True


def test_a_guess_that_sees_its_pixel_costs_nothing(batch: Batch) -> None:
    """The known failure of a shift by one left out: the loss falls to almost nothing, which an honest one cannot."""
    found = {}
    for leak in (False, True):
        task = make("igpt")
        assert isinstance(task, IGPT)
        colours = task.drawn(batch)[1][:12]
        ahead = (
            torch.cat([colours[:, 1:], colours[:, :1]], 1) if leak else colours
        )  # each state then reads its own target
        optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
        for _ in range(40):
            logits = task.head(task.encoder.model(ahead)[0])
            loss = F.cross_entropy(
                logits[:, 1:].flatten(0, 1), ahead[:, :-1].flatten() if leak else colours[:, 1:].flatten()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[leak] = loss.item()
    assert found[True] < 0.1 < 0.5 < found[False], found


def test_colours_are_the_nearest_levels() -> None:
    """Of the mean of the pixels that make one, in [0, 1]; and back."""
    mean, std = [0.3, 0.5, 0.6], [0.2, 0.25, 0.3]
    encoder = encoder_of(side=4, levels=5, mean=mean, std=std)
    x = torch.sin(torch.arange(2 * 3 * 16 * 16) * 1.3).view(2, 3, 16, 16) * 2
    ids = encoder.quantise(x)
    picture = encoder.picture(ids)
    assert ids.shape == (2, 16)
    assert torch.equal(encoder.quantise(picture), ids)
    for i in range(4):
        for j in range(4):
            for row in range(2):
                index = 0
                for c in range(3):
                    value = x[row, c, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].double().mean().item() * std[c] + mean[c]
                    level = min(range(5), key=lambda k, v=value: abs(min(max(v, 0), 1) - k / 4))
                    index += level * 5**c
                    assert picture[row, c, i, j].item() * std[c] + mean[c] == pytest.approx(level / 4, abs=1e-5)
                assert ids[row, 4 * i + j].item() == index


def test_without_statistics_colours_span_what_is_likely() -> None:
    encoder = encoder_of(channels=1, levels=2, side=2)
    x = torch.tensor([[[[-2.6, -0.1], [0.1, 2.6]]]])
    assert encoder.quantise(x).tolist() == [[0, 0, 1, 1]]
    assert encoder.picture(encoder.quantise(x)).flatten().tolist() == pytest.approx([-2.5, -2.5, 2.5, 2.5])


@pytest.mark.parametrize("name", ["igpt_nano", "igpt_micro"])
@pytest.mark.parametrize("size", [8, 32, 50])
def test_the_encoder_reads_any_size(name: str, size: int) -> None:
    encoder = encoder_of(name, size)
    out = encoder(torch.sin(torch.arange(2 * 3 * size * size)).view(2, 3, size, size))
    side = min(SIZES[name]["side"], size)
    assert out.tokens.shape == (2, side**2, encoder.token_width)
    assert out.pooled.shape == (2, encoder.width)
    layers = {encoder.layer_of(n) for n, _ in encoder.named_parameters()}
    assert layers == set(range(encoder.depth + 1))
    with pytest.raises(UserError, match="cannot skip"):
        encoder(torch.zeros(1, 3, size, size), torch.zeros(1, 1, dtype=torch.int64))


def test_pooled_is_the_mean_of_the_middle_layers_normalised_input() -> None:
    """Section 2.3: what goes into the attention of layer l, after its normalisation, averaged over the sequence."""
    encoder, read = encoder_of(), list[torch.Tensor]()
    blocks: Any = encoder.model.blocks
    blocks[2].qkv.register_forward_pre_hook(lambda part, given: read.append(given[0]))
    out = encoder(torch.sin(torch.arange(2 * 3 * 256)).view(2, 3, 16, 16))
    assert len(blocks) == 4
    torch.testing.assert_close(out.pooled, read[0].mean(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels' is 1"),
        ({"levels": 17}, "17, 4913 colours of 3 channels"),
        ({"side": 1}, "has side 1"),
        ({"heads": 5}, "width 64 and 5 heads"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder_of(**options)


def test_it_is_chosen_knows_the_statistics_and_lives_in_a_bundle(tmp_path: Path) -> None:
    """The colours are the same before saving, after loading, and of the baseline with random weights."""
    assert choose(32, "cpu", IGPT.needs) == "igpt_nano"
    modality, source = ImageModality(16, 1, (0.3,), (0.37,)), small_digits().source
    config = Images().encoder("igpt_nano", 16, source, modality)  # type: ignore[arg-type]
    assert config.options == {"mean": [0.3], "std": [0.37]}
    encoder = build(config, 3).eval()
    bundle.save(tmp_path / "encoder", encoder, modality, {"pretext": "igpt"}, encoder.state_dict())
    loaded = bundle.load(tmp_path)
    x = torch.sin(torch.arange(3 * 256)).view(3, 1, 16, 16)
    assert torch.equal(loaded.encoder(x).pooled, encoder(x).pooled)
    bare = build(config.bare())
    assert isinstance(bare, PixelEncoder)
    assert isinstance(encoder, PixelEncoder)
    assert torch.equal(bare.quantise(x), encoder.quantise(x))


def test_another_encoder_is_refused() -> None:
    encoder = build(EncoderConfig("vit_micro", 16, 1))
    with pytest.raises(UserError, match=r"can causal_pixels.*igpt_nano"):
        IGPT(encoder, ImageModality(16, 1, (0.3,), (0.37,)), IGPT.Config())
