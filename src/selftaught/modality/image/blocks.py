"""Blocks of patches to hide, by BEiT's algorithm, for a whole batch at once."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_TRIES = 30  # blocks that are tried in all
_PATIENCE = 10  # of them without success, after which no more are placed
_ASPECT = 0.3  # least ratio of a block's sides, either way


def block_draws(grid: tuple[int, int]) -> int:
    """Uniform numbers that `block_masks` takes a row."""
    return 4 * _TRIES + grid[0] * grid[1]


def block_masks(u: Float[Tensor, "b m"], grid: tuple[int, int], count: Int[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    """Which patches are hidden: exactly count[i] of row i, in reading order.

    Rectangles are placed one after the other as long as they do not exceed the count (BEiT, Bao et al. 2022, algorithm 1, with
    iBOT's least area); what is left open, because nothing fits any more, is filled up patch by patch at random. Row i is a
    function of row i of `u`, which has `block_draws(grid)` numbers in [0, 1), and of count[i].
    """
    height, width = grid
    tries = u[:, : 4 * _TRIES].double().unflatten(1, (_TRIES, 4))
    rows = torch.arange(height, device=u.device)[:, None]
    columns = torch.arange(width, device=u.device)
    least = float((min(height, width) // 3) ** 2)
    mask = torch.zeros(len(u), height, width, dtype=torch.bool, device=u.device)
    left, failed = count.clone(), torch.zeros_like(count)
    for area, aspect, top, side in (draw.unbind(1) for draw in tries.unbind(1)):
        area = least + area * (left - least)
        aspect = torch.exp((2 * aspect - 1) * -math.log(_ASPECT))
        h, w = ((area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long())
        y, x = (top * (height - h + 1)).long(), (side * (width - w + 1)).long()
        y, x, h, w = (t[:, None, None] for t in (y, x, h, w))
        block = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
        new = (block & ~mask).sum((1, 2))
        fits = (h < height)[:, 0, 0] & (w < width)[:, 0, 0] & (new > 0) & (new <= left) & (failed < _PATIENCE)
        mask |= block & fits[:, None, None]
        left = left - new * fits
        failed = torch.where(fits, 0, failed + 1)
    hidden = mask.flatten(1)
    order = u[:, 4 * _TRIES :].masked_fill(hidden, 2.0).argsort(1).argsort(1)  # rank among those not hidden yet
    return hidden | (order < left[:, None])
