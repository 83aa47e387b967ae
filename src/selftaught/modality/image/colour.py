"""Colour jitter, greyscale and solarisation of a whole batch, in place, with torchvision's exact semantics.

Views are planar, [C, B, S, S], float32 in [0, 1]. Multiplications and additions are kept apart (no fused multiply-add,
no lerp), so that a pixel's bits do not depend on where in a batch it lies.
"""

from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selftaught.modality.image.views import ORDERS, View

# As tensors without dimensions: a Python number costs an elementwise pass twice its time on small pieces.
_GREY_WEIGHTS = torch.tensor([0.2989, 0.587, 0.114]).unbind(0)  # torchvision's rounding of ITU-R BT.601
_THIRD, _HALF, _TWO_THIRDS, _ONE, _TWO, _SIX = torch.tensor([1 / 3, 1 / 2, 2 / 3, 1.0, 2.0, 6.0]).unbind(0)

Planes = Float[Tensor, "c n s s"]


def brightness_(x: Planes, factor: Float[Tensor, " n"]) -> None:
    """factor * x, clamped to [0, 1]."""
    x.mul_(factor[:, None, None]).clamp_(0, 1)


def contrast_(x: Planes, factor: Float[Tensor, " n"]) -> None:
    """Blend with the mean grey of the picture (of all its channels where they are not three)."""
    means = x.flatten(2).mean(-1)
    mean = _weighted(means) if len(x) == 3 else means.mean(0)
    x.mul_(factor[:, None, None]).add_(((1 - factor) * mean)[:, None, None]).clamp_(0, 1)


def saturation_(x: Planes, factor: Float[Tensor, " n"]) -> None:
    """Blend with the picture's own greyscale."""
    grey = _weighted(x).mul_((1 - factor)[:, None, None])
    x.mul_(factor[:, None, None]).add_(grey).clamp_(0, 1)


def hue_(x: Planes, turn: Float[Tensor, " n"]) -> None:
    """Turn the hue of HSV by `turn` of the colour wheel (torchvision's adjust_hue), never leaving RGB for long.

    With C the chroma, m the smallest channel and t in [0, 1) the turned hue, the channels are those of HSV's hexagon:
    red m + C * ramp(6 |t - 1/2| - 1), green and blue m + C * ramp(2 - 6 |t - 1/3|) and (2 - 6 |t - 2/3|), where ramp
    clamps to [0, 1]. The hue itself is found by swapping channels into order: masks are float and choices are
    arithmetic, because torch's boolean masks and `where` are ten times slower than its float operations on a CPU.
    """
    r, g, b = x.unbind(0)
    larger, smaller = torch.maximum(g, b), torch.minimum(g, b)
    g_below_b = torch.lt(g, b, out=torch.empty_like(larger))
    not_red = torch.lt(r, larger, out=torch.empty_like(larger))
    middle = torch.minimum(r, larger)
    high = torch.maximum(r, larger, out=larger)
    low = torch.minimum(middle, smaller)
    chroma = high - low
    # 0 (red, green above blue), -1 (red, blue above green), -1/3 (green the largest) or 2/3 (blue the largest)
    offset = (g_below_b * _TWO).sub_(_THIRD).mul_(not_red).sub_(g_below_b)
    chroma6 = torch.mul(chroma, _SIX, out=not_red)
    t = middle.sub_(smaller).div_(chroma6.clamp_min(1e-12)).add_(offset).abs_()  # a grey pixel has any hue
    t = t.add_((turn + 1)[:, None, None]).frac_()
    scratch = offset
    torch.sub(t, _HALF, out=scratch).abs_().clamp_(1 / 6, 1 / 3).mul_(chroma6)
    torch.add(scratch, low.sub_(chroma), out=r)
    ceiling = high.add_(chroma)
    for centre, plane in ((_THIRD, g), (_TWO_THIRDS, b)):
        torch.sub(t, centre, out=scratch).abs_().clamp_(1 / 6, 1 / 3).mul_(chroma6)
        torch.sub(ceiling, scratch, out=plane)


def _weighted(x: Tensor) -> Tensor:
    """The grey of three channels [3, ...]."""
    r, g, b = _GREY_WEIGHTS
    return (x[0] * r).add_(x[1] * g).add_(x[2] * b)


_OPERATIONS = (brightness_, contrast_, saturation_, hue_)


def jitter_(views: Planes, view: View, order: Int[Tensor, " n"], factors: Float[Tensor, "n 4"]) -> None:
    """Colour jitter, in place. `order` must be sorted; rows with -1 (they come first) are left alone.

    Sorted, the rows that take the same operation after the same ones lie side by side, so each operation runs once on
    a whole slice: at most 4 + 12 + 24 + 24 times.
    """
    colour = len(views) == 3
    active = (view.brightness > 0, view.contrast > 0, view.saturation > 0 and colour, view.hue > 0 and colour)
    rows = [(i, ORDERS[k]) for i, k in enumerate(order.tolist()) if k >= 0]
    for place in range(4):
        for prefix, group in groupby(rows, key=lambda row: row[1][: place + 1]):
            operation = prefix[place]
            if active[operation]:
                indices = [i for i, _ in group]
                piece = slice(indices[0], indices[-1] + 1)
                _OPERATIONS[operation](views[:, piece], factors[piece, operation])


def greyscale_(views: Planes, rows: Int[Tensor, " k"]) -> None:
    """The given rows without colour, in all three channels."""
    if len(rows):
        grey = _weighted(torch.stack([plane.index_select(0, rows) for plane in views]))
        for plane in views:
            plane.index_copy_(0, rows, grey)


def solarise_(views: Planes, rows: Int[Tensor, " k"]) -> None:
    """The given rows with values of at least 0.5 inverted."""
    if len(rows):
        for plane in views:
            x = plane.index_select(0, rows)
            plane.index_copy_(0, rows, torch.where(x >= _HALF, _ONE - x, x))
