"""CIE L*a*b* of sRGB (IEC 61966-2-1, white point D65), and the colours that sRGB has in it, in bins.

Pictures are [..., 3, H, W], RGB in [0, 1]; L lies in [0, 100], a and b between -110 and 100. No matrix products: under autocast
they would lose what 8-bit colours need.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
)
_WHITE = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
_TO_XYZ = _XYZ / _WHITE[:, None]  # of the white point
_FROM_XYZ = torch.linalg.inv(_TO_XYZ)
_KNEE = 6 / 29  # below its cube L*a*b* is linear
_LEVELS = 65  # of each channel, enough to hit all bins that all 256 hit
_FAR = 1000  # more cells than lie beside each other

Planes = Float[Tensor, "*b 3 h w"]


def _mixed(x: Planes, matrix: Tensor) -> Planes:
    planes = x.unbind(-3)
    return torch.stack([sum(m * p for m, p in zip(row, planes)) for row in matrix.tolist()], -3)


def _linear(x: Tensor) -> Tensor:
    """Light of sRGB's values."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def _encoded(x: Tensor) -> Tensor:
    """sRGB's values of light."""
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def rgb_to_lab(rgb: Planes) -> Planes:
    """L, a and b of RGB."""
    xyz = _mixed(_linear(rgb), _TO_XYZ)
    root = torch.where(xyz > _KNEE**3, xyz.clamp_min(_KNEE**3) ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29)
    x, y, z = root.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def lab_to_rgb(lab: Planes) -> Planes:
    """RGB of L, a and b; outside [0, 1] where sRGB has no such colour."""
    light, a, b = lab.unbind(-3)
    y = (light + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], -3)
    return _encoded(_mixed(torch.where(root > _KNEE, root**3, 3 * _KNEE**2 * (root - 4 / 29)), _FROM_XYZ))


def grey(rgb: Planes) -> Planes:
    """The grey of the same L, which is a function of luminance alone."""
    r, g, b = _linear(rgb).unbind(-3)
    weights = _TO_XYZ[1].tolist()
    return _encoded(weights[0] * r + weights[1] * g + weights[2] * b).unsqueeze(-3).expand_as(rgb)


def gamut(grid: int) -> Float[Tensor, "q 2"]:
    """The points (a, b) of a grid whose cells, of side `grid`, hold some colour of sRGB; in ascending order."""
    levels = torch.linspace(0, 1, _LEVELS, dtype=torch.float64)
    colours = torch.cartesian_prod(levels, levels, levels).T[..., None]
    cells = (rgb_to_lab(colours)[1:, :, 0] / grid).round().long()
    found = torch.unique(cells[0] * _FAR + cells[1] + _FAR // 2)  # one number a cell: unique rows would take a second
    return torch.stack([found.div(_FAR, rounding_mode="floor"), found % _FAR - _FAR // 2], 1).float() * grid


def nearest(
    ab: Float[Tensor, "b 2 h w"], bins: Float[Tensor, "q 2"], count: int, sigma: float
) -> tuple[Int[Tensor, "b k h w"], Float[Tensor, "b k h w"]]:
    """The `count` bins (q at most) nearest to each colour, the nearest first, and their weights by a Gaussian, which sum to 1."""
    distance, index = torch.cdist(ab.permute(0, 2, 3, 1).flatten(0, 2), bins).topk(count, largest=False)
    weight = torch.softmax(-distance.square() / (2 * sigma**2), 1)
    shape = (len(ab), *ab.shape[2:], count)
    return index.view(shape).permute(0, 3, 1, 2), weight.view(shape).permute(0, 3, 1, 2)
