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


def crop_resize(
    pixels: UInt8[Tensor, "b c h w"], size: Int[Tensor, "b 2"], p: Parameters, views: Float[Tensor, "c b s s"]
) -> None:
    """Each picture's box resized (bilinear, antialiased) and flipped, into `views`, in [0, 255].

    Which way a picture goes depends on its own size and the device, never on the rest of the batch. The matrices
    compute in float32; torch's uint8 resize rounds to whole steps (it is what torchvision does to uint8).
    """
    if pixels.shape[2:] == views.shape[2:] and _untouched(p, views.shape[-1]):
        views.copy_(pixels.transpose(0, 1))
    elif pixels.device.type != "cpu":
        _by_matrices(pixels, p, views)
    else:
        small = (size.amax(1) <= MATRIX_LIMIT) & (p.window[:, :2].amax(1) <= 2 * MATRIX_LIMIT)
        if bool(small.all()):
            _by_matrices(_trimmed(pixels, size), p, views)
        else:
            _one_by_one(pixels, p, (~small).nonzero()[:, 0].tolist(), views)
            rows = small.nonzero()[:, 0]
            if len(rows):
                chosen = torch.empty_like(views[:, rows])
                _by_matrices(_trimmed(pixels[rows], size[rows]), p[rows], chosen)
                views[:, rows] = chosen


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


def _one_by_one(pixels: Tensor, p: Parameters, rows: list[int], views: Tensor) -> None:
    side = views.shape[-1]
    boxes, windows, flips = p.box.tolist(), p.window.tolist(), p.flip.tolist()
    for i in rows:
        top, left, height, width = boxes[i]
        *full, window_top, window_left = windows[i]
        crop = pixels[i : i + 1, :, top : top + height, left : left + width]
        # torch resizes pictures in H, W, C order about twice as fast, and many rows faster after than before columns.
        crop = crop.contiguous(memory_format=torch.channels_last)
        if 4 * height > 5 * full[0]:
            crop = F.interpolate(crop, size=[full[0], width], mode="bilinear", antialias=True)
        crop = F.interpolate(crop, size=full, mode="bilinear", antialias=True)[0]
        crop = crop[:, window_top : window_top + side, window_left : window_left + side]
        # To planes while it is uint8, and to floats then: both at once take half as long again.
        views[:, i].copy_((crop.flip(-1) if flips[i] else crop).contiguous())


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


def blur_bands(sigma: Float[Tensor, " b"], largest: float, side: int) -> Float[Tensor, "b k t"]:
    """Gaussian kernels as banded matrices: the `_TILE` entries in a row of a blurred view from the _TILE + 2 radius ones
    around them. `largest`: sigma there can be; 0 is the identity.

    A kernel is 2 * (side // 20) + 1 wide (SimCLR: a tenth of the view), but no wider than 3.5 times the largest sigma to
    each side. In float64 for the reason given in `views.sample`.
    """
    radius = min(side // 20, math.ceil(_BLUR_REACH * largest))
    at = torch.arange(-radius, _TILE + radius, device=sigma.device, dtype=torch.float64)
    distance = (at[:, None] - at[radius : radius + _TILE]).abs()
    weights = torch.exp(-0.5 * (distance / sigma.double().clamp_min(1e-3)[:, None, None]) ** 2) * (distance <= radius)
    return (weights / weights.sum(1, keepdim=True)).float()


def blur_(views: Float[Tensor, "c b s s"], sigma: Float[Tensor, " b"], bands: Float[Tensor, "b k t"]) -> None:
    """Gaussian blur in place where sigma > 0, reflected at the borders (torchvision's gaussian_blur).

    As matrix products over short tiles: a sum of shifted pictures would go through memory twice for each weight.
    """
    rows = (sigma > 0).nonzero()[:, 0]
    if bands.shape[1] == bands.shape[2]:  # kernels of one pixel
        return
    if views.device.type == "cpu":
        for row in rows.tolist():  # one by one they stay in cache, and a tile is a view of its picture
            one = slice(row, row + 1)
            views[:, one] = _blurred(views[:, one], bands[one])
    elif len(rows):
        views[:, rows] = _blurred(views[:, rows], bands[rows])


def _blurred(x: Float[Tensor, "c n s s"], bands: Float[Tensor, "n k t"]) -> Float[Tensor, "c n s s"]:
    c, n, side, _ = x.shape
    k, t = bands.shape[1:]
    radius, beyond = (k - t) // 2, -side % t
    padded = F.pad(x, (0, 0, radius, radius + beyond), mode="reflect")
    columns = x.new_empty(c, n, side + beyond, side)
    for plane, out in zip(padded, columns):
        torch.matmul(bands.mT[:, None], plane.unfold(1, k, t).mT, out=out.unflatten(1, (-1, t)))
    padded = F.pad(columns[:, :, :side], (radius, radius + beyond, 0, 0), mode="reflect")
    tiles = padded.transpose(0, 1).flatten(1, 2).unfold(2, k, t).transpose(1, 2)
    rows = torch.matmul(tiles, bands[:, None]).transpose(1, 2).reshape(n, c, side, -1)
    return rows[..., :side].transpose(0, 1)
