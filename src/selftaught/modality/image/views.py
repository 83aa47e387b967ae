"""What a view of a picture is: its strengths (`View`), and one draw of its parameters per picture (`sample`)."""

import itertools
import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selftaught.errors import UserError

CROP_TRIES = 10
DRAWS = 2 * CROP_TRIES + 2 + 11
"""Uniform numbers per view. Each purpose has its own columns, so one option never shifts another's draws."""

ORDERS = tuple(itertools.permutations(range(4)))
"""The orders of brightness (0), contrast (1), saturation (2) and hue (3), lexicographic."""


@dataclass(frozen=True)
class View:
    """A family of random views. The defaults are SimCLR's for ImageNet (Chen et al. 2020, appendix A).

    size: side of the square view in pixels; None: the modality's.
    crop_scale, crop_ratio: bounds of the crop's share of the picture's area and of its width / height (uniform in the
        logarithm), resized to the view. crop_scale None: no random crop; short side to `size`, then the centre.
    flip: probability of a horizontal flip.
    jitter: probability of colour jitter, which applies all four in a random order: `brightness`, `contrast` and
        `saturation` by factors uniform in [max(0, 1 - s), 1 + s], `hue` by a turn uniform in [-s, s].
        Saturation and hue act on three channels only, greyscale too; the others on any number.
    greyscale, blur, solarise: probabilities. Blur is Gaussian, sigma uniform in blur_sigma (pixels of the view), its
        kernel as wide as a tenth of the view; solarise inverts what is at least 0.5.
    exact_colour: jitter colours operation by operation as torchvision does, instead of by one matrix (`colour.py` says
        how they differ).
    """

    size: int | None = None
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    greyscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    exact_colour: bool = False

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "greyscale", "blur", "solarise"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "in [0, 0.5], in turns of the colour wheel")
        _require(self.size is None or self.size >= 1, "size", self.size, "at least 1 pixel")
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _require(0 < low <= high, name, (low, high), "two positive numbers in ascending order")
        if self.crop_scale is not None:
            low, high = self.crop_scale
            _require(0 < low <= high <= 1, "crop_scale", (low, high), "two areas in (0, 1] in ascending order")

    @classmethod
    def simclr(cls, size: int | None = None) -> "View":
        """SimCLR's view. Up to 32 px its CIFAR recipe: colour strength 0.5 and no blur (Chen et al. 2020, B.9)."""
        if size is None or size > 32:
            return cls(size=size)
        return cls(size=size, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0)

    @classmethod
    def byol(cls, size: int | None, second: bool) -> "View":
        """BYOL's two views (Grill et al. 2020, table 6); up to 32 px without blur, as solo-learn's recipe for CIFAR."""
        blur = 0.0 if size is not None and size <= 32 else 0.1 if second else 1.0
        view = cls(size=size, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
        return replace(view, blur=blur, solarise=0.2 if second else 0.0)

    @classmethod
    def crop_flip(cls, size: int | None = None, scale: tuple[float, float] = (0.2, 1.0)) -> "View":
        """Random crop and horizontal flip, colours untouched."""
        return cls(size=size, crop_scale=scale, jitter=0.0, greyscale=0.0, blur=0.0)

    @classmethod
    def mae(cls, size: int | None = None) -> "View":
        """The only augmentation of MAE's pretraining (He et al. 2022, table 8): crop of scale 0.2 to 1, and flip."""
        return cls.crop_flip(size)

    @classmethod
    def plain(cls, size: int | None = None) -> "View":
        """The deterministic view of evaluation: short side to `size` (antialiased), then the centre square."""
        return replace(cls.crop_flip(size), crop_scale=None, flip=0.0)


def _require(holds: bool, name: str, value: object, constraint: str) -> None:
    if not holds:
        raise UserError(f"view.{name} is {value}, but must be {constraint}")


@dataclass(frozen=True)
class Parameters:
    """One draw per picture; everything `apply` needs beside the pixels.

    box: int64 [B, 4], top, left, height, width of the part of the picture that is resized.
    window: int64 [B, 4], the height and width it is resized to, and the top and left of the view in that.
    flip, greyscale, solarise: bool [B].
    order: int64 [B], row of ORDERS, or -1 where no colour jitter is applied.
    factors: float32 [B, 4], brightness, contrast, saturation (1 = unchanged) and hue (0 = unchanged).
    sigma: float32 [B], of the blur, in pixels of the view; 0 where none is applied.
    """

    box: Int[Tensor, "b 4"]
    window: Int[Tensor, "b 4"]
    flip: Bool[Tensor, " b"]
    order: Int[Tensor, " b"]
    factors: Float[Tensor, "b 4"]
    greyscale: Bool[Tensor, " b"]
    sigma: Float[Tensor, " b"]
    solarise: Bool[Tensor, " b"]

    def __getitem__(self, rows: Tensor | slice) -> "Parameters":
        """The parameters of some of the pictures."""
        return Parameters(*(getattr(self, field.name)[rows] for field in fields(self)))


def sample(view: View, u: Float[Tensor, "b n"], size: Int[Tensor, "b 2"], side: int) -> Parameters:
    """Parameters of a view of `side` pixels from uniform numbers `u` [B, DRAWS] and the pictures' heights and widths.

    The distributions are torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale and
    GaussianBlur. Row i depends on row i of `u` and `size` alone: transcendental functions are taken in float64, so that
    a last bit that differs between vectorised and scalar code does not reach the result.
    """
    u = u.double()
    crop, rest = u[:, : 2 * CROP_TRIES + 2], u[:, 2 * CROP_TRIES + 2 :].unbind(1)
    if view.crop_scale is None:
        box, window = _centre(size, side)
    else:
        box = _random_crop(crop, size, view.crop_scale, view.crop_ratio)
        window = torch.full_like(box, side)
        window[:, 2:] = 0
    low, high = view.blur_sigma
    strengths = (view.brightness, view.contrast, view.saturation)
    factors = [max(0.0, 1 - s) + rest[2 + i] * (1 + s - max(0.0, 1 - s)) for i, s in enumerate(strengths)]
    factors.append(view.hue * (2 * rest[5] - 1))
    return Parameters(
        box=box,
        window=window,
        flip=rest[0] < view.flip,
        order=torch.where(rest[1] < view.jitter, (rest[6] * len(ORDERS)).long(), -1),
        factors=torch.stack(factors, 1).float(),
        greyscale=rest[7] < view.greyscale,
        sigma=torch.where(rest[8] < view.blur, low + rest[9] * (high - low), 0.0).float(),
        solarise=rest[10] < view.solarise,
    )


def _random_crop(u: Tensor, size: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """torchvision's RandomResizedCrop: the first of ten boxes that fits, else a large one in the centre."""
    height, width = size.double().unbind(1)
    area = (height * width)[:, None] * (scale[0] + u[:, :CROP_TRIES] * (scale[1] - scale[0]))
    logs = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(logs[0] + u[:, CROP_TRIES : 2 * CROP_TRIES] * (logs[1] - logs[0]))
    w, h = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (w > 0) & (h > 0) & (w <= width[:, None]) & (h <= height[:, None])
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.any(1)
    # Where none fits, the whole picture, cut to the nearest legal ratio.
    widest = torch.minimum(width, (height * ratio[1]).round().clamp_min(1))
    tallest = torch.minimum(height, (width / ratio[0]).round().clamp_min(1))
    w = torch.where(found, w.gather(1, first)[:, 0], widest)
    h = torch.where(found, h.gather(1, first)[:, 0], tallest)
    top = torch.where(found, torch.floor(u[:, -2] * (height - h + 1)), torch.floor((height - h) / 2))
    left = torch.where(found, torch.floor(u[:, -1] * (width - w + 1)), torch.floor((width - w) / 2))
    return torch.stack([top, left, h, w], 1).long()


def _centre(size: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """torchvision's Resize(side) and CenterCrop(side)."""
    box = torch.cat([torch.zeros_like(size), size], 1)
    short = size.amin(1, keepdim=True)
    resized = torch.div(size * side, short, rounding_mode="floor")
    start = torch.round((resized - side).double() / 2).long()
    return box, torch.cat([resized, start], 1)
