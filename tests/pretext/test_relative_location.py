"""Relative location: the loss, where patches lie, and the colours that would give the answer away."""

import math

import pytest
import torch

from selftaught.batch import Batch
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality
from selftaught.modality.image.tiles import pixelated, without_aberration
from selftaught.pretext.relative_location import RelativeLocation
from tests.contracts.conftest import make


def coloured(colours: str) -> tuple[RelativeLocation, Batch]:
    encoder = build(EncoderConfig("resnet10_x0.25", 16, 3), 0)
    modality = ImageModality(16, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    pixels = torch.randint(0, 256, (16, 3, 40, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    batch = Batch(modality.inputs(pixels), torch.arange(16), 0, 0)
    return RelativeLocation(encoder, modality, RelativeLocation.Config(colours=colours)), batch


def test_loss_is_the_published_one(batch: Batch) -> None:
    task = make("relative_location", norm="layer", pixelated=0.0).eval()
    step = task(batch)
    step.loss.backward()
    weight = task.head[-1].weight
    given = weight.grad.clone()

    x = task.modality.view(batch, task.view, stream=1)
    top, left, y = task.places(batch)
    terms = []
    for i in range(len(batch)):
        features = []
        for k in range(2):
            r, c = top[i, k], left[i, k]
            patch = x[i, :, r : r + task.tile, c : c + task.tile].double()
            patch = (patch - patch.mean()) / torch.sqrt(patch.var(unbiased=False) + 1e-5)
            features.append(task.encoder(patch.float()[None]).pooled[0])
        scores = task.head(torch.cat(features)[None])[0].double()
        terms.append(-torch.log_softmax(scores, 0)[y[i]])
    expected = torch.stack(terms).mean()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(given, torch.autograd.grad(expected, weight)[0], rtol=1e-3, atol=1e-5)


def test_patches_lie_as_the_answer_says_and_apart() -> None:
    """The paper's figures: patches of 96 px, a gap of 48, shifts of up to 7 each way."""
    task = make("relative_location", tile=96)
    top, left, y = task.places(Batch({}, torch.arange(4000), 1, 0))
    assert min(top.min(), left.min()) == 0
    assert max(top.max(), left.max()) + 96 == task.view.size
    down, right = top[:, 1] - top[:, 0], left[:, 1] - left[:, 0]
    signs = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    for k, (vertical, horizontal) in enumerate(signs):
        for moved, sign in ((down[y == k], vertical), (right[y == k], horizontal)):
            assert -14 <= (moved - sign * 144).min() <= -12
            assert 12 <= (moved - sign * 144).max() <= 14
    assert (torch.maximum(down.abs(), right.abs()) - 96).min() >= 34  # never side by side
    counts = torch.bincount(y, minlength=8)
    assert ((counts - 500).abs() < 85).all(), counts  # four standard deviations


def test_a_third_of_the_patches_is_pixelated() -> None:
    """How the pixels of an enlarged picture were made differs from place to place."""
    encoder, modality = build(EncoderConfig("resnet10_x0.25", 32, 1), 0), ImageModality(32, 1, (0.5,), (0.2,))
    one, none = (
        RelativeLocation(encoder, modality, RelativeLocation.Config(pixelated=share, colours="keep"))
        for share in (1 / 3, 0)
    )
    pixels = torch.randint(0, 256, (600, 1, 80, 80), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    batch = Batch(modality.inputs(pixels), torch.arange(600), 0, 1)
    assert one.coarse(batch) < 16
    (coarse, y), (fine, same) = one.drawn(batch), none.drawn(batch)
    assert torch.equal(y, same)
    differ = (coarse != fine).flatten(2).any(2)
    assert differ.float().mean().item() == pytest.approx(1 / 3, abs=0.05)
    assert (differ[:, 0] != differ[:, 1]).any()
    sides = {one.coarse(Batch({}, torch.arange(1), 0, step)) for step in range(300)}
    assert sides <= set(range(2, 17))
    assert min(sides) <= 4
    assert max(sides) == 16
    tile = torch.randn(1, 1, 1, 16, 16)
    found = pixelated(tile, 4, torch.tensor([[True]]))
    small = tile[0, 0, 0].unflatten(0, (4, 4)).unflatten(2, (4, 4)).mean((1, 3))
    large = torch.nn.functional.interpolate(small[None, None], size=(16, 16), mode="bilinear")
    torch.testing.assert_close(found[0, 0], large[0])


def test_dropped_channels_do_not_reach_the_encoder() -> None:
    """The fringes that a lens leaves are seen only between channels."""
    task, batch = coloured("drop")
    patches, _ = task.drawn(batch)
    spread = patches.std((-2, -1))
    assert ((spread > 0.5).sum(-1) == 1).all()
    noise = patches[spread < 0.5]
    assert noise.std().item() == pytest.approx(0.01, rel=0.05)
    kept = (spread > 0.5).float().argmax(-1)
    assert len(kept.unique()) == 3
    assert (kept[:, 0] != kept[:, 1]).any()  # drawn for each patch
    others = torch.arange(3)[:, None, None] != kept[:, 0, None, None, None]
    changed = Batch({**batch.inputs}, batch.index, batch.seed, batch.step)
    view = task.modality.view(batch, task.view, 1)
    task.modality.view = lambda *_, **__: torch.where(others, view.roll(1, 2), view)  # type: ignore[method-assign]
    assert torch.equal(task.drawn(changed)[0][:, 0], patches[:, 0])


def test_projection_takes_away_green_against_magenta() -> None:
    axis = torch.tensor([-1.0, 2, -1])[:, None, None]
    x = torch.rand(4, 2, 3, 8, 8)
    fringe = torch.randn(4, 2, 1, 8, 8) * axis
    torch.testing.assert_close(without_aberration(x + fringe), without_aberration(x), rtol=1e-4, atol=1e-5)
    grey = torch.rand(1, 1, 8, 8).expand(1, 3, 8, 8)
    torch.testing.assert_close(without_aberration(grey), grey)
    task, batch = coloured("project")
    patches, _ = task.drawn(batch)
    view = task.modality.view(batch, task.view, 1)
    side, std = view.shape[-1], task.std  # the fringe is one of pixels, before each channel was divided by its own std
    task.modality.view = lambda *_, **__: view + torch.randn(16, 1, side, side) * axis / std  # type: ignore[method-assign]
    torch.testing.assert_close(task.drawn(batch)[0], patches, rtol=1e-3, atol=2e-3)


def test_colours_may_be_kept() -> None:
    task, batch = coloured("keep")
    assert (task.drawn(batch)[0].std((-2, -1)) > 0.9).all()


def test_without_learning_it_is_at_chance(batch: Batch) -> None:
    task = make("relative_location")
    for parameter in task.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert task(batch).loss.item() == pytest.approx(task.chance(len(batch))) == pytest.approx(math.log(8))


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"gap' is -1; it must be 0 or more"):
        make("relative_location", gap=-1)
    with pytest.raises(UserError, match=r"jitter' is 0.3; it must be 0 to half of the gap, 0.25"):
        make("relative_location", jitter=0.3)
