"""Crop, antialiased resize, flip and blur of a batch; torchvision's filters, picture by picture or by matrices.

Views are held planar, [C, B, S, S], so that each colour plane of a batch is contiguous.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from selftaught.modality.image.views import Parameters

MATRIX_LIMIT = 64
"""On a CPU, larger pictures go one by one through torch's uint8 resize: dense matrices would mostly be zeros."""

_BLUR_REACH = 3.5  # in sigmas: what is beyond weighs less than 5e-4 in all, an eighth of 1/255
_TILE = 16
_UNIT = torch.tensor(2.0**16)


class Crops:
    """The crops of a batch: each picture's box resized (bilinear, antialiased) and flipped, in [0, 255].

    Which way a picture goes depends on its own size and the device, never on the rest of the batch. The matrices
    compute in float32; torch's uint8 resize rounds to whole steps (it is what torchvision does to uint8).
    What rows need of the parameters as Python numbers is read once here: per block it would take as long as the crops.
    """

    def __init__(self, pixels: UInt8[Tensor, "b c h w"], size: Int[Tensor, "b 2"], p: Parameters, side: int) -> None:
        self.pixels, self.size, self.p, self.on_cpu = pixels, size, p, pixels.device.type == "cpu"
        # Where it can be asked without waiting for a card.
        self.untouched = self.on_cpu and pixels.shape[2:] == (side, side) and _untouched(p, side)
        self.large = torch.zeros_like(p.flip)
        if self.on_cpu:
            self.large = (size.amax(1) > MATRIX_LIMIT) | (p.window[:, :2].amax(1) > 2 * MATRIX_LIMIT)
        self.some_large = self.on_cpu and bool(self.large.any())
        self.numbers = (
            list(zip(*(x.tolist() for x in (p.box, p.window, p.flip, self.large)))) if self.some_large else []
        )

    def into(self, views: Float[Tensor, "c n s s"], rows: slice | Tensor) -> None:
        """Write the crops of some of the pictures."""
        pixels = self.pixels[rows]
        if self.untouched:
            views.copy_(pixels.transpose(0, 1))
        elif not self.on_cpu:
            _by_matrices(pixels, self.p[rows], views)
        elif not self.some_large:
            _by_matrices(_trimmed(pixels, self.size[rows]), self.p[rows], views)
        else:
            chosen = self.numbers[rows] if isinstance(rows, slice) else [self.numbers[i] for i in rows.tolist()]
            for i, (box, window, flip, large) in enumerate(chosen):
                if large:
                    _one(pixels[i : i + 1], box, window, flip, views[:, i])
            small = (~self.large[rows]).nonzero()[:, 0]
            if len(small):
                crops = torch.empty_like(views[:, small])
                _by_matrices(_trimmed(pixels[small], self.size[rows][small]), self.p[rows][small], crops)
                views[:, small] = crops


def _untouched(p: Parameters, side: int) -> bool:
    return bool(((p.box[:, 2:] == side) & (p.window[:, :2] == side)).all()) and not bool(p.flip.any())


def _trimmed(pixels: Tensor, size: Tensor) -> Tensor:
    """The canvas that holds the largest picture, its sides multiples of 8.

    A matrix product adds its terms in another order where their number is not such a multiple, and a picture's bits
    must not depend on its neighbours' sizes; terms that are zero change nothing.
    """
    height, width = (-(size.amax(0) // -8) * 8).tolist()
    pixels = pixels[:, :, :height, :width]
    return F.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))


def _one(pixels: Tensor, box: list[int], window: list[int], flip: bool, view: Float[Tensor, "c s s"]) -> None:
    top, left, height, width = box
    *full, window_top, window_left = window
    side = view.shape[-1]
    # torch resizes pictures in H, W, C order about twice as fast, and many rows faster after than before columns.
    crop = pixels[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    if 4 * height > 5 * full[0]:
        crop = F.interpolate(crop, size=[full[0], width], mode="bilinear", antialias=True)
    crop = F.interpolate(crop, size=full, mode="bilinear", antialias=True)[0]
    crop = crop[:, window_top : window_top + side, window_left : window_left + side]
    # Flipped while the channels lie side by side, to planes while it is uint8, to floats then: all else is slower.
    view.copy_((crop.flip(-1) if flip else crop).contiguous())


def _by_matrices(pixels: Tensor, p: Parameters, views: Tensor) -> None:
    b, c, h, w = pixels.shape
    side = views.shape[-1]
    still = torch.zeros_like(p.flip)
    vertical = _filter(p.box[:, 0], p.box[:, 2], p.window[:, 0], p.window[:, 2], still, side, h)
    horizontal = _filter(p.box[:, 1], p.box[:, 3], p.window[:, 1], p.window[:, 3], p.flip, side, w)
    x = pixels.to(torch.float32, memory_format=torch.contiguous_format).view(b, c * h, w)
    x = torch.bmm(x, horizontal.transpose(1, 2)).view(b, c, h, side)
    for channel in range(c):
        torch.bmm(vertical, x[:, channel], out=views[channel])


def _filter(
    start: Tensor, length: Tensor, resized: Tensor, offset: Tensor, flip: Tensor, n_out: int, n_in: int
) -> Float[Tensor, "b o i"]:
    """Weights of the antialiased bilinear (triangle) filter: row o of picture i makes view pixel o from its line.

    The triangle is as wide as the larger of an input and an output pixel, and normalised within the box, as in PIL and
    torchvision. Its values are multiples of 2^-16, so that their sum is exact (up to 256-fold shrinking) and
    does not depend on `n_in`.
    """
    out = torch.arange(n_out, device=start.device)
    out = torch.where(flip[:, None], n_out - 1 - out, out)
    scale = length.double() / resized.double()
    centre = start[:, None] + (out + offset[:, None] + 0.5) * scale[:, None]
    into = torch.arange(n_in, device=start.device)
    # Distances in units of which the triangle is 2^16 wide (half) and high, rounded before they fill a matrix.
    per_pixel = _UNIT / scale.clamp_min(1.0)
    first = ((0.5 - centre) * per_pixel[:, None]).round_().float()
    distance = (into * per_pixel[:, None]).round_().float()[:, None, :] + first[:, :, None]
    weight = torch.sub(_UNIT, distance.abs_(), out=distance).clamp_min_(0.0)
    inside = (into >= start[:, None]) & (into < (start + length)[:, None])
    weight *= inside[:, None, :].float()
    return weight.mul_(weight.sum(-1, keepdim=True).reciprocal_())


class Blur:
    """The Gaussian blurs of a batch, where sigma > 0, reflected at the borders (torchvision's gaussian_blur).

    A kernel is 2 * (side // 20) + 1 wide (SimCLR: a tenth of the view), but no wider than 3.5 sigma (rounded up) to each
    side. `largest`: sigma there can be.

    Blurring is a product with banded matrices over short tiles, where a sum of shifted pictures would go through memory
    twice for each weight. `bands` [B, K, _TILE]: the _TILE entries in a row of a blurred view from the _TILE + 2 radius
    ones around them.
    """

    def __init__(self, sigma: Float[Tensor, " b"], largest: float, side: int) -> None:
        self.sigma = sigma
        self.radius = radius = min(side // 20, math.ceil(_BLUR_REACH * largest))
        # In float64 for the reason given in `views.sample`.
        at = torch.arange(-radius, _TILE + radius, device=sigma.device, dtype=torch.float64)
        distance = (at[:, None] - at[radius : radius + _TILE]).abs()
        width = sigma.double().clamp_min(1e-3)[:, None, None]
        reach = (_BLUR_REACH * width).ceil().clamp_max(radius)
        weights = torch.exp(-0.5 * (distance / width) ** 2) * (distance <= reach)
        self.bands = (weights / weights.sum(1, keepdim=True)).float()

    def on(self, views: Float[Tensor, "c n s s"], rows: slice | Tensor) -> None:
        """Blur the views of some rows in place."""
        sigma, bands = self.sigma[rows], self.bands[rows]
        if self.radius == 0:
            return
        if views.device.type == "cpu":  # one by one they stay in cache, tiles are views, and bands have no zero rows
            for i, width in enumerate(sigma.tolist()):
                if width > 0:
                    zeros = max(0, self.radius - math.ceil(_BLUR_REACH * width))
                    _blur_(views[:, i : i + 1], bands[i : i + 1, zeros : bands.shape[1] - zeros])
        elif len(chosen := (sigma > 0).nonzero()[:, 0]):
            blurred = views[:, chosen]
            _blur_(blurred, bands[chosen])
            views[:, chosen] = blurred


def _blur_(x: Float[Tensor, "c n s s"], bands: Float[Tensor, "n k t"]) -> None:
    c, n, side, _ = x.shape
    k, t = bands.shape[1:]
    radius, beyond = (k - t) // 2, -side % t
    padded = F.pad(x, (0, 0, radius, radius + beyond), mode="reflect")
    columns = x.new_empty(c, n, side + beyond, side)
    for plane, out in zip(padded, columns):
        torch.matmul(bands.mT[:, None], plane.unfold(1, k, t).mT, out=out.unflatten(1, (-1, t)))
    padded = F.pad(columns[:, :, :side], (radius, radius + beyond, 0, 0), mode="reflect")
    tiles = padded.transpose(0, 1).flatten(1, 2).unfold(2, k, t).transpose(1, 2)
    target = x.transpose(0, 1)
    whole = beyond == 0 and target.is_contiguous()
    rows = target if whole else x.new_empty(n, c, side, side + beyond)
    torch.matmul(tiles, bands[:, None], out=rows.view(n, c * side, -1, t).transpose(1, 2))
    if not whole:
        target.copy_(rows[..., :side])
