"""Views against torchvision, operation by operation and as a chain; and what a view may depend on."""

import math

import selftaught.encoders._torchvision  # noqa: F401  (it goes before torchvision)

# isort: split
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality, Parameters, View, apply, sample
from selftaught.modality.image.views import DRAWS, ORDERS

EXACT = 2e-6  # float32 rounding of the same formula
HUE = 2e-5  # rounding again, times the slope of the hue of nearly grey pixels
STEP = 1 / 255 + 1e-6  # torch's resize of uint8 pictures rounds to whole steps
RESIZE = 2e-4  # filter weights in multiples of 2^-16
BLUR = 5e-4  # the weight of the kernel beyond 3.5 sigma


def pictures(sizes: list[tuple[int, int]], channels: int = 3, canvas: int | None = None) -> tuple[Tensor, Tensor]:
    """Smooth pictures with noise, flat patches, greys and saturated colours, on one canvas."""
    height = canvas or max(h for h, _ in sizes)
    width = canvas or max(w for _, w in sizes)
    pixels = torch.zeros(len(sizes), channels, height, width, dtype=torch.uint8)
    for i, (h, w) in enumerate(sizes):
        generator = torch.Generator().manual_seed(1000 * h + w + i)
        coarse = torch.rand(1, channels, 5, 4, generator=generator) * 320 - 32
        x = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic")[0]
        x += torch.randn(channels, h, w, generator=generator) * 8
        x[:, : h // 4, : w // 4] = x[:1, : h // 4, : w // 4]
        x[:, -1] = 255
        pixels[i, :, :h, :w] = x.clamp(0, 255).to(torch.uint8)
    return pixels, torch.tensor(sizes)


def batch_of(sizes: list[tuple[int, int]], channels: int = 3, **changes: int) -> Batch:
    pixels, size = pictures(sizes, channels)
    return Batch({"pixels": pixels, "size": size}, torch.arange(len(sizes)), seed=changes.get("seed", 3), step=5)


def modality(size: int, channels: int = 3) -> ImageModality:
    return ImageModality(size, channels, (0.4, 0.5, 0.6, 0.5)[:channels], (0.2, 0.3, 0.25, 0.1)[:channels])


def nothing(size: Tensor, side: int) -> Parameters:
    """Parameters that resize the whole picture and do no more."""
    b = len(size)
    return Parameters(
        box=torch.cat([torch.zeros_like(size), size], 1),
        window=torch.tensor([side, side, 0, 0]).repeat(b, 1),
        flip=torch.zeros(b, dtype=torch.bool),
        order=torch.full((b,), -1),
        factors=torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(b, 1),
        greyscale=torch.zeros(b, dtype=torch.bool),
        sigma=torch.zeros(b),
        solarise=torch.zeros(b, dtype=torch.bool),
    )


def changed(p: Parameters, **values: Tensor) -> Parameters:
    return Parameters(**{name: values.get(name, old) for name, old in vars(p).items()})


ALL = View(solarise=0.5, exact_colour=True)
EXACTLY = View(exact_colour=True)


@pytest.mark.parametrize("side", [8, 32, 48, 224])
@pytest.mark.parametrize("sizes", [[(32, 32)], [(20, 64), (64, 17), (8, 8)], [(300, 211), (90, 130)]])
def test_crop_and_resize(sizes: list[tuple[int, int]], side: int) -> None:
    pixels, size = pictures(sizes)
    for seed in range(4):
        u = torch.rand(len(sizes), DRAWS, generator=torch.Generator().manual_seed(seed))
        box = sample(View(), u, size, side).box
        views = apply(pixels, size, ALL, changed(nothing(size, side), box=box), side)
        assert views.shape == (len(sizes), 3, side, side)
        for x, (h, w), (top, left, height, width), out in zip(pixels, sizes, box.tolist(), views):
            expected = tv.resized_crop(x[:, :h, :w] / 255, top, left, height, width, [side, side], antialias=True)
            torch.testing.assert_close(out, expected, rtol=0, atol=RESIZE if max(h, w) <= 64 and side <= 128 else STEP)


def test_canvas_beyond_the_picture_is_never_seen() -> None:
    pixels, size = pictures([(30, 20), (64, 50), (120, 100)])
    soiled = pixels.clone()
    for x, (h, w) in zip(soiled, size.tolist()):
        x[:, h:] = 255
        x[:, :, w:] = 255
    for view in (View(), View.plain()):
        p = sample(view, torch.rand(3, DRAWS), size, 40)
        assert torch.equal(apply(pixels, size, view, p, 40), apply(soiled, size, view, p, 40))


@pytest.mark.parametrize("side", [16, 96])
def test_flip(side: int) -> None:
    pixels, size = pictures([(40, 30), (100, 80)])
    p = nothing(size, side)
    upright = apply(pixels, size, ALL, p, side)
    flipped = apply(pixels, size, ALL, changed(p, flip=torch.tensor([True, True])), side)
    torch.testing.assert_close(flipped, upright.flip(-1), rtol=0, atol=EXACT)


COLOUR = [
    (0, [0.0, 0.2, 1.0, 1.7], tv.adjust_brightness, EXACT),
    (1, [0.0, 0.2, 1.0, 1.8], tv.adjust_contrast, EXACT),
    (2, [0.0, 0.4, 1.0, 1.8], tv.adjust_saturation, EXACT),
    (3, [-0.5, -0.2, 0.0, 0.1, 0.49], tv.adjust_hue, HUE),
]


@pytest.mark.parametrize(("operation", "factors", "reference", "tolerance"), COLOUR)
@pytest.mark.parametrize("side", [32, 224])
def test_each_colour_operation(operation: int, factors: list[float], reference, tolerance: float, side: int) -> None:
    pixels, size = pictures([(side, side)] * len(factors))
    p = nothing(size, side)
    p.factors[:, operation] = torch.tensor(factors)
    p = changed(p, order=torch.arange(len(factors)) * 5)
    views = apply(pixels, size, EXACTLY, p, side)
    for x, factor, out in zip(pixels, factors, views):
        torch.testing.assert_close(out, reference(x / 255, factor), rtol=0, atol=tolerance)


@pytest.mark.parametrize("side", [16, 224])
def test_fused_colours_are_the_operations_without_clamps(side: int) -> None:
    """In every order; the colours are mild, so that torchvision's intermediate clamps do nothing."""
    pixels, size = pictures([(side, side)] * 26)
    pixels = (pixels / 255 * 40 + 100).to(torch.uint8)
    p = changed(
        nothing(size, side),
        order=torch.cat([torch.arange(24), torch.tensor([-1, -1])]),
        factors=torch.tensor([1.2, 0.7, 1.5, 0.0]).repeat(26, 1),
        greyscale=torch.arange(26) % 5 == 0,
    )
    for i, out in enumerate(apply(pixels, size, View(), p, side)):
        x = pixels[i] / 255
        for operation in ORDERS[i] if i < 24 else ():
            x = COLOUR[operation][2](x, p.factors[i, operation].item())
        x = tv.rgb_to_grayscale(x, 3) if p.greyscale[i] else x
        torch.testing.assert_close(out, x, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("turn", "share"), [(1 / 3, 0), (-1 / 3, 0), (0.1, 1 / 3), (-0.2, 1 / 3), (1 / 6, 1 / 3)])
def test_fused_hue_is_hsvs_within_a_share_of_the_chroma(turn: float, share: float) -> None:
    """Red turned by a sixth is the worst case: (2/3, 2/3, -1/3) instead of (1, 1, 0)."""
    pixels, size = pictures([(32, 32)] * 3)
    pixels = (pixels / 255 * 60 + 100).to(torch.uint8)
    x = pixels / 255
    p = changed(nothing(size, 32), order=torch.zeros(3).long(), factors=torch.tensor([[1.0, 1, 1, turn]] * 3))
    out = apply(pixels, size, View(), p, 32)
    chroma = x.amax(1) - x.amin(1)
    assert ((out - tv.adjust_hue(x, turn)).abs().amax(1) <= share * chroma + 1e-5).all()
    torch.testing.assert_close(out.sum(1), x.sum(1))


def test_fused_colours_stay_in_range() -> None:
    pixels, size = pictures([(32, 32)] * 24)
    p = changed(nothing(size, 32), order=torch.arange(24), factors=torch.tensor([[1.8, 1.8, 1.8, 0.2]] * 24))
    out = apply(pixels, size, View(), p, 32)
    assert out.min() == 0
    assert out.max() == 1


def test_hue_of_every_kind_of_colour() -> None:
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 6, 36)[None]
    x = torch.nn.functional.pad(x, (0, 0, 0, 30))
    size = torch.tensor([[36, 36]])
    for turn in (-0.5, -1 / 3, -0.1, 0.0, 1 / 6, 0.4):
        p = changed(nothing(size, 36), order=torch.tensor([0]), factors=torch.tensor([[1.0, 1.0, 1.0, turn]]))
        torch.testing.assert_close(apply(x, size, EXACTLY, p, 36)[0], tv.adjust_hue(x[0] / 255, turn), rtol=0, atol=HUE)


def test_greyscale_and_solarise() -> None:
    pixels, size = pictures([(32, 32)] * 3)
    p = changed(
        nothing(size, 32), greyscale=torch.tensor([True, False, False]), solarise=torch.tensor([False, True, False])
    )
    grey, solarised, same = apply(pixels, size, ALL, p, 32)
    x = pixels / 255
    torch.testing.assert_close(grey, tv.rgb_to_grayscale(x[0], 3), rtol=0, atol=EXACT)
    torch.testing.assert_close(solarised, tv.solarize(x[1], 0.5), rtol=0, atol=EXACT)
    torch.testing.assert_close(same, x[2], rtol=0, atol=EXACT)


@pytest.mark.parametrize(("side", "width"), [(20, 3), (32, 3), (64, 7), (224, 23)])
def test_blur(side: int, width: int) -> None:
    sigmas = [0.1, 0.0, 0.7, 1.3, 2.0]
    pixels, size = pictures([(side, side)] * len(sigmas))
    views = apply(pixels, size, ALL, changed(nothing(size, side), sigma=torch.tensor(sigmas)), side)
    for x, sigma, out in zip(pixels / 255, sigmas, views):
        expected = tv.gaussian_blur(x, [width, width], [sigma, sigma]) if sigma else x
        torch.testing.assert_close(out, expected, rtol=0, atol=BLUR)


@pytest.mark.parametrize(("sizes", "side"), [([(32, 32)] * 60, 32), ([(260, 200), (120, 300)] * 3, 224)])
def test_the_whole_chain(sizes: list[tuple[int, int]], side: int) -> None:
    pixels, size = pictures(sizes)
    u = torch.rand(len(sizes), DRAWS, generator=torch.Generator().manual_seed(0))
    p = sample(ALL, u, size, side)
    p = changed(p, solarise=torch.zeros_like(p.solarise))  # it jumps at 0.5, where rounding decides
    views = apply(pixels, size, ALL, p, side)
    adjust = [reference for _, _, reference, _ in COLOUR]
    width = 2 * (side // 20) + 1
    for i, out in enumerate(views):
        x = tv.resized_crop(pixels[i, :, : sizes[i][0], : sizes[i][1]] / 255, *p.box[i].tolist(), [side, side])
        x = tv.horizontal_flip(x) if p.flip[i] else x
        for operation in ORDERS[p.order[i]] if p.order[i] >= 0 else ():
            x = adjust[operation](x, p.factors[i, operation].item())
        x = tv.rgb_to_grayscale(x, 3) if p.greyscale[i] else x
        x = tv.gaussian_blur(x, [width, width], [p.sigma[i].item()] * 2) if p.sigma[i] else x
        # Brightness, contrast and saturation may each stretch a difference 1.8-fold; hue at a grey pixel more.
        error = (out - x).abs()
        assert error.mean() < (1e-5 if side == 32 else 3e-3), i
        assert error.quantile(0.999) < (1e-3 if side == 32 else 0.04), i


def test_normalisation() -> None:
    batch = batch_of([(32, 32)] * 5)
    m = modality(32)
    u = batch.uniform(1, DRAWS)
    expected = apply(
        batch.inputs["pixels"], batch.inputs["size"], View(), sample(View(), u, batch.inputs["size"], 32), 32
    )
    out = m.view(batch, View(), 1)
    torch.testing.assert_close(out, tv.normalize(expected, list(m.mean), list(m.std)), rtol=0, atol=1e-5)


MIXED = [(32, 32), (20, 31), (64, 64), (9, 8), (200, 150), (33, 90), (1, 40), (32, 32), (57, 23), (100, 400)]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("side", [8, 21, 32, 64, 224])
def test_a_view_depends_on_its_sample_alone(side: int, exact: bool) -> None:
    """The same bits in any batch, at any position, whatever the other pictures' sizes and the canvas."""
    batch = batch_of(MIXED)
    m = modality(side)
    view = View(blur_sigma=(0.5, 2.0), solarise=0.3, exact_colour=exact)
    whole, plain = m.view(batch, view, 2), m.plain(batch)
    subsets = [[i] for i in range(len(MIXED))] + [[3, 0, 8], [7, 1, 0, 3], [9, 4], [5, 8, 2, 1, 3], [6, 3, 6]]
    for rows in subsets:
        h, w = batch.inputs["size"][rows].amax(0).tolist()
        inputs = {"pixels": batch.inputs["pixels"][rows, :, :h, :w], "size": batch.inputs["size"][rows]}
        part = Batch(inputs, batch.index[rows], batch.seed, batch.step)
        assert torch.equal(m.view(part, view, 2), whole[rows]), rows
        assert torch.equal(m.plain(part), plain[rows]), rows


@pytest.mark.parametrize("view", [View(), View(exact_colour=True), View.crop_flip()])
def test_many_small_pictures_depend_on_their_sample_alone(view: View) -> None:
    sizes = [(8 + i % 25, 8 + i * 7 % 25) for i in range(150)]
    batch = batch_of(sizes)
    m = modality(32)
    whole = m.view(batch, view, 1)
    for n in (1, 2, 7, 40, 149):
        rows = torch.arange(n).flip(0)
        part = Batch({k: x[rows] for k, x in batch.inputs.items()}, rows, batch.seed, batch.step)
        assert torch.equal(m.view(part, view, 1), whole[rows]), n


def test_streams_seeds_and_steps_differ() -> None:
    batch = batch_of([(32, 32)] * 4)
    m = modality(32)
    first = m.view(batch, View(), 1)
    assert torch.equal(first, m.view(batch, View(), 1))
    for other in (m.view(batch, View(), 2), m.view(batch_of([(32, 32)] * 4, seed=4), View(), 1)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other))


def test_plain_is_resize_and_centre_crop() -> None:
    for sizes in ([(32, 32), (20, 60), (64, 33), (15, 16)], [(300, 200), (201, 500), (70, 71)]):
        batch = batch_of(sizes)
        m = modality(32)
        reference = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(32)])
        for (h, w), x, out in zip(sizes, batch.inputs["pixels"], m.plain(batch)):
            expected = tv.normalize(reference(x[:, :h, :w] / 255), list(m.mean), list(m.std))
            atol = (RESIZE if max(h, w) <= 64 else STEP) / min(m.std)
            torch.testing.assert_close(out, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("side", [32, 224])
def test_plain_leaves_a_fitting_picture_untouched(side: int) -> None:
    alone, beside = batch_of([(side, side)] * 2), batch_of([(side, side)] * 2 + [(side + 20, side)])
    m = ImageModality(side, 3, (0.0,) * 3, (1.0,) * 3)
    for batch in (alone, beside):
        x = batch.inputs["pixels"][:2, :, :side, :side]
        torch.testing.assert_close(m.plain(batch)[:2], x / 255, rtol=0, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    pixels, size = pictures([(32, 32)] * 24, channels)
    batch = Batch({"pixels": pixels, "size": size}, torch.arange(24), 0, 0)
    views = ImageModality(32, channels, (0.0,) * channels, (1.0,) * channels).view(batch, View(), 1)
    assert views.shape == (24, channels, 32, 32)
    p = changed(nothing(size, 32), order=torch.arange(24), factors=torch.tensor([1.3, 0.6, 0.2, 0.2]).repeat(24, 1))
    x = pixels / 255
    for i, out in enumerate(apply(pixels, size, View(), p, 32)):
        expected = x[i]
        for operation in ORDERS[i]:
            if operation == 0:
                expected = (1.3 * expected).clamp(0, 1)
            if operation == 1:
                expected = (0.6 * expected + 0.4 * expected.mean()).clamp(0, 1)
        torch.testing.assert_close(out, expected, rtol=0, atol=EXACT)


def test_crops_are_distributed_as_torchvisions() -> None:
    n = 4000
    torch.manual_seed(0)
    size = torch.tensor([[60, 100]]).repeat(n, 1)
    ours = sample(View(), torch.rand(n, DRAWS), size, 32).box.double()
    crop, empty = v2.RandomResizedCrop(32), torch.empty(3, 60, 100)
    theirs = torch.tensor(
        [
            [params[k] for k in ("top", "left", "height", "width")]
            for params in (crop.make_params([empty]) for _ in range(n))
        ]
    ).double()
    ours_top, ours_left, ours_h, ours_w = ours.unbind(1)
    assert (ours_top + ours_h).max() <= 60
    assert (ours_left + ours_w).max() <= 100
    for a, b in zip(ours.unbind(1), theirs.unbind(1)):
        grid = torch.arange(100.0)[:, None]
        distance = ((a <= grid).double().mean(1) - (b <= grid).double().mean(1)).abs().max()
        assert distance < 1.95 * math.sqrt(2 / n)  # Kolmogorov and Smirnov, 0.1 %


def test_crop_of_a_picture_that_no_box_fits() -> None:
    size = torch.tensor([[4, 400], [400, 4], [1, 1]])
    box = sample(View(crop_scale=(0.9, 1.0)), torch.rand(3, DRAWS), size, 32).box
    assert box.tolist() == [[0, 197, 4, 5], [197, 0, 5, 4], [0, 0, 1, 1]]


def test_strengths_and_probabilities() -> None:
    n = 20_000
    size = torch.full((n, 2), 32)
    u = torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(0))
    view = View(brightness=0.8, contrast=1.5, saturation=0.4, hue=0.1, solarise=0.1, flip=0.3)
    p = sample(view, u, size, 32)
    for values, low, high in zip(p.factors.unbind(1), (0.2, 0.0, 0.6, -0.1), (1.8, 2.5, 1.4, 0.1)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high + 1e-6
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02)
    sigma = p.sigma[p.sigma > 0]
    assert 0.1 <= sigma.min() < 0.11
    assert 1.99 < sigma.max() <= 2
    for happened, probability in (
        (p.flip, 0.3),
        (p.order >= 0, 0.8),
        (p.greyscale, 0.2),
        (p.sigma > 0, 0.5),
        (p.solarise, 0.1),
    ):
        assert happened.double().mean() == pytest.approx(probability, abs=0.015)
    counts = p.order[p.order >= 0].bincount()
    assert len(counts) == 24
    assert counts.min() > 500


def test_recipes() -> None:
    small, large = View.simclr(32), View.simclr(224)
    assert (small.brightness, small.hue, small.blur) == (0.4, 0.1, 0.0)
    assert (large.brightness, large.hue, large.blur) == (0.8, 0.2, 0.5)
    assert modality(32).contrastive_view() == small
    light = modality(32).light_view()
    assert light == View.mae(32) == View.crop_flip(32)
    assert (light.crop_scale, light.jitter, light.greyscale, light.blur) == ((0.2, 1.0), 0, 0, 0)
    batch = batch_of([(40, 50)] * 3)
    m = modality(32)
    assert torch.equal(m.view(batch, View.plain(), 1), m.plain(batch))
    assert m.view(batch, View(size=20), 1).shape == (3, 3, 20, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.5}, r"view.flip is 1.5, but must be a probability in \[0, 1\]"),
        ({"hue": 0.6}, "view.hue"),
        ({"contrast": -0.1}, "at least 0"),
        ({"crop_scale": (0.5, 0.2)}, "ascending"),
        ({"crop_ratio": (0.0, 1.0)}, "positive"),
        ({"size": 0}, "at least 1 pixel"),
    ],
)
def test_impossible_views(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        View(**changes)


def test_modality_json_and_errors() -> None:
    m = modality(48, 1)
    again = ImageModality.from_json(m.to_json())
    assert again.to_json() == m.to_json() == {"size": 48, "channels": 1, "mean": [0.4], "std": [0.2]}
    for bad in ({}, {**m.to_json(), "crop": 1}, {**m.to_json(), "size": "48"}):
        with pytest.raises(UserError, match="image preprocessing is"):
            ImageModality.from_json(bad)
    with pytest.raises(UserError, match="mean has 1 values, but the pictures have 3 channels"):
        ImageModality(32, 3, (0.5,), (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="std is"):
        ImageModality(32, 1, (0.5,), (0.0,))
    with pytest.raises(UserError, match="pictures have 3 channels, but the modality was made for 1"):
        m.plain(batch_of([(8, 8)]))
