"""Which patches of a picture are hidden: functions of uniform numbers, row by row."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selftaught.errors import UserError

_TRIES = 30  # blocks that are tried in all
_PATIENCE = 10  # of them without success, after which no more are placed
_ASPECT = 0.3  # least ratio of a block's sides, either way


def random_masking(noise: Float[Tensor, "b n"], mask: float) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b m"]]:
    """Indices of kept and of hidden patches: the `mask` share with the largest noise is hidden (MAE, appendix A.1).

    At least one patch is kept and one hidden. UserError for one patch.
    """
    n = noise.shape[1]
    _refuse_one(n)
    kept = min(max(1, round(n * (1 - mask))), n - 1)
    order = noise.argsort(dim=1)
    return order[:, :kept], order[:, kept:]


def _refuse_one(patches: int) -> None:
    if patches < 2:
        raise UserError("a picture of one patch has none to hide; use a larger --size or smaller patches")


def cell_side(grid: tuple[int, int], block: int | None = None) -> int:
    """Side in patches of the squares that `cell_masking` hides: `block`, or of those that tile the grid the nearest to a
    share of 1/6.5 (SimMIM's 32 px are 1/6 of 192 px and 1/7 of 224). UserError for a block that does not tile the grid."""
    _refuse_one(grid[0] * grid[1])
    fitting = [s for s in range(1, max(2, min(grid))) if grid[0] % s == grid[1] % s == 0]
    if block is None:
        return min(fitting, key=lambda s: abs(s - min(grid) / 6.5))
    if block not in fitting:
        raise UserError(
            f"setting 'pretext.block' is {block}; it must be one of {', '.join(map(str, fitting))}, which tile the "
            f"{grid[0]} x {grid[1]} patches of a picture"
        )
    return block


def cell_masking(noise: Float[Tensor, "b m"], mask: float, side: int, grid: tuple[int, int]) -> Bool[Tensor, "b n"]:
    """Hide squares of side x side patches: the `mask` share of them, rounded up, with the least noise (SimMIM, section 3.2).

    noise: one number for each square, in reading order. At least one square is left.
    """
    rows, columns = grid[0] // side, grid[1] // side
    hidden = min(math.ceil(rows * columns * mask), rows * columns - 1)
    cells = torch.zeros_like(noise, dtype=torch.bool).scatter(1, noise.argsort(dim=1)[:, :hidden], True)
    large = cells.view(-1, rows, columns).repeat_interleave(side, 1).repeat_interleave(side, 2)
    return large.flatten(1)


def block_side(share: float, aspect: float, grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a block with that share of the patches and that height / width; both below the grid's."""
    patches = int(grid[0] * grid[1] * share)
    height, width = round(math.sqrt(patches * aspect)), round(math.sqrt(patches / aspect))
    return min(max(1, height), grid[0] - 1), min(max(1, width), grid[1] - 1)


def placed(u: Float[Tensor, "b 2"], side: tuple[int, int], grid: tuple[int, int]) -> Int[Tensor, "b a"]:
    """The patches of a block of that height and width at a uniform place in the grid, in reading order."""
    room = torch.tensor([grid[0] - side[0] + 1, grid[1] - side[1] + 1], device=u.device)
    corner = (u * room).long()
    rows, columns = (torch.arange(s, device=u.device) for s in side)
    inside = (rows[:, None] * grid[1] + columns).flatten()
    return (corner[:, 0] * grid[1] + corner[:, 1])[:, None] + inside


def multi_block(
    u: Float[Tensor, "b m"], context: tuple[int, int], target: tuple[int, int], grid: tuple[int, int]
) -> tuple[Bool[Tensor, "b n"], Bool[Tensor, "b n"], Int[Tensor, "b t a"]]:
    """One context block and several target blocks (I-JEPA, section 3), of the given heights and widths.

    u: two numbers for the context block, two for each target block; so t = m / 2 - 1.
    Returns what the context block covers without targets, what targets cover, and the patches of each target.
    """
    at = [placed(pair, target, grid) for pair in u[:, 2:].split(2, dim=1)]
    blank = torch.zeros(len(u), grid[0] * grid[1], dtype=torch.bool, device=u.device)
    covered = blank.scatter(1, torch.cat(at, 1), True)
    seen = blank.scatter(1, placed(u[:, :2], context, grid), True) & ~covered
    return seen, covered, torch.stack(at, 1)


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
