"""Pictures as sequences of patches."""

import torch
from jaxtyping import Float
from torch import Tensor

from selftaught.errors import UserError


def patchify(x: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n p"]:
    """Non-overlapping patches in reading order, each flattened as (row, column, channel); p = patch² · c."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(x: Float[Tensor, "b n p"], patch: int, grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """The inverse of `patchify` for a grid of (rows, columns)."""
    b, _, p = x.shape
    rows, columns = grid
    x = x.reshape(b, rows, columns, patch, patch, p // patch**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * patch, columns * patch)


def standardisable(patch: int, channels: int) -> None:
    """UserError where a patch is one number, which has no variance."""
    if patch**2 * channels < 2:
        raise UserError(
            "a patch of one grey pixel cannot be standardised; use --set pretext.normalise=false, or a larger --size"
        )


def standardised(patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
    """Each patch with mean 0 and variance 1 over its own pixels (MAE, He et al. 2022, section 3)."""
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) * torch.rsqrt(var + 1e-6)
