"""Tiles of pictures: small squares cut out at places that differ from picture to picture."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from selftaught.errors import UserError

_GREEN_MAGENTA = (-1.0, 2.0, -1.0)  # the axis along which lenses shift green against red and blue


def tile_side(size: int, patch: int, asked: int | None) -> int:
    """Side of a tile in pixels: as asked, or half of `size`, in whole patches of the encoder (patch 0: it has none)."""
    step = patch or 1
    side = asked or max(step, round(size / 2 / step) * step)
    if side % step:
        raise UserError(f"setting 'pretext.tile' is {side}; it must be a multiple of the encoder's patch of {step}")
    return side


def cut(
    x: Float[Tensor, "b c h w"], top: Int[Tensor, "b n"], left: Int[Tensor, "b n"], side: int
) -> Float[Tensor, "b n c s s"]:
    """n squares of each picture, whose upper left pixels are at (top, left)."""
    b, c, _, w = x.shape
    steps = torch.arange(side, device=x.device)
    at = (top[..., None] + steps)[..., :, None] * w + (left[..., None] + steps)[..., None, :]
    found = x.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, c, -1))
    return found.view(b, c, -1, side, side).transpose(1, 2)


def pixelated(tiles: Float[Tensor, "b n c s s"], side: int, which: Bool[Tensor, "b n"]) -> Float[Tensor, "b n c s s"]:
    """Tiles of which some are made smaller, side x side pixels, and as large as they were again."""
    small = functional.interpolate(tiles.flatten(0, 1), size=(side, side), mode="area")
    coarse = functional.interpolate(small, size=tiles.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(which[..., None, None, None], coarse.view_as(tiles), tiles)


def standardised(tiles: Float[Tensor, "*n s s"]) -> Float[Tensor, "*n s s"]:
    """Each channel of each tile at mean 0 and variance 1; one even colour becomes 0."""
    tiles = tiles - tiles.mean((-2, -1), keepdim=True)
    return tiles * torch.rsqrt(tiles.square().mean((-2, -1), keepdim=True) + 1e-5)


def without_aberration(tiles: Float[Tensor, "*n 3 s s"]) -> Float[Tensor, "*n 3 s s"]:
    """Colours (not normalised, or by shifts alone) without what lies along green against magenta (Doersch et al., 3.1)."""
    axis = tiles.new_tensor(_GREEN_MAGENTA)[:, None, None]
    return tiles - axis * ((tiles * axis).sum(-3, keepdim=True) / axis.square().sum())


def one_channel(
    tiles: Float[Tensor, "*n c s s"], kept: Int[Tensor, " *n"], noise: Float[Tensor, "*n c s s"]
) -> Float[Tensor, "*n c s s"]:
    """Tiles of which one channel is kept and the others are noise."""
    channel = torch.arange(tiles.shape[-3], device=tiles.device)
    return torch.where((channel == kept[..., None])[..., None, None], tiles, noise)
