"""Heads between an encoder and a loss: the MLPs of the contrastive and distilling pretexts, BERT's for pairs of texts, a decoder
to pixels and a discriminator of pictures."""

from itertools import pairwise
from math import ceil, log2
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.errors import UserError

Norm = Literal["batch", "layer", "none"]


class ProjectionHead(nn.Sequential):
    """An MLP of `layers` linear layers, ReLU between them: features [B, width] to projections [B, out].

    SimCLR (Chen et al. 2020) has layers=2, its second version 3. With last_norm the last layer is normalised too,
    without scale and shift, as in SimCLR's official code and SimSiam's projector. BYOL's and SimSiam's predictors are
    layers=2. layers=1 is one linear map. last_bias False leaves out the last layer's bias, for losses that do not see it.

    norm: after each hidden linear layer "batch" or "layer" normalisation, or "none". A linear layer before one has no
    bias, since the normalisation takes it away or (layer) has its own.
    gelu: GELU instead of ReLU, as in DINO's head.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int,
        *,
        layers: int = 2,
        norm: Norm = "batch",
        last_norm: bool = False,
        last_bias: bool = True,
        gelu: bool = False,
    ) -> None:
        if layers < 1:
            raise UserError(f"a head of {layers} layers maps nothing; use layers 1 or more")
        if last_norm and norm == "none":
            raise UserError("last_norm needs a normalisation; use norm 'batch' or 'layer', or last_norm False")
        stack: list[nn.Module] = []
        for a, b in pairwise([width, *[hidden] * (layers - 1)]):
            stack += [
                nn.Linear(a, b, bias=norm == "none"),
                *_normalisation(norm, b, affine=True),
                nn.GELU() if gelu else nn.ReLU(inplace=True),
            ]
        stack.append(nn.Linear(hidden if layers > 1 else width, out, bias=last_bias and not last_norm))
        if last_norm:
            stack += _normalisation(norm, out, affine=False)
        super().__init__(*stack)
        self.out = out

    def forward(self, features: Float[Tensor, "b width"]) -> Float[Tensor, "b out"]:
        """Projections, not normalised to unit length: the losses do that."""
        return super().forward(features)


class Prototypes(nn.Module):
    """K unit vectors that projections are compared with, by cosine: projections [B, width] to scores [B, K], in float32.

    The weights are normalised in each forward pass, so the gradient turns them and cannot lengthen them: SwAV's normalised
    prototypes, and the last layer of DINO's head (weight normalisation, the length fixed to 1).
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))

    def forward(self, x: Float[Tensor, "*b width"]) -> Float[Tensor, "*b k"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(F.normalize(x.float(), dim=-1), F.normalize(self.weight.float(), dim=1))

    def freeze(self) -> None:
        """Drop the gradient: the optimiser passes over weights without one, and begins with them when they first have one. A
        gradient of zero would use up AdamW's bias correction, and the first true ones would move them several times too far."""
        self.weight.grad = None

    @torch.no_grad()
    def to_unit_length(self) -> None:
        """Shorten the weights to the unit vectors they stand for, so that the size of a step keeps its meaning."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


class PairHead(nn.Module):
    """BERT's head for two texts in one sequence: the first token's encoding, dense and tanh, to two logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.out = nn.Linear(width, width), nn.Linear(width, 2)
        for layer in (self.dense, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "b l width"]) -> Float[Tensor, "b 2"]:
        """Logits of "as in the document" and "not"."""
        return self.out(self.dense(tokens[:, 0]).tanh())


class PixelDecoder(nn.Module):
    """Tokens [B, N, width] on a square grid of N cells to maps [B, out, side, side].

    Transposed convolutions double the grid until it has `side` cells or more, as DCGAN's do and those of context encoders, each
    with half the channels of the one before (64 at least, 256 at first); a map that is then too large is resampled. Normalised
    over each picture: BatchNorm's statistics would tie the pictures of a batch together.

    grid: rows and columns of the tokens; UserError where they are no square.
    """

    def __init__(self, width: int, out: int, grid: tuple[int, int], side: int) -> None:
        super().__init__()
        rows, columns = grid
        if rows < 1 or rows != columns:
            raise UserError(
                f"a decoder to pixels needs a square grid of tokens, not {grid}; use a resnet* or vit_* encoder"
            )
        self.grid, self.side = grid, side
        now = min(width, 256)
        stack: list[nn.Module] = [nn.Conv2d(width, now, 1), nn.GroupNorm(1, now), nn.ReLU(inplace=True)]
        for _ in range(max(0, ceil(log2(side / rows)))):
            then = max(now // 2, min(now, 64))
            stack += [nn.ConvTranspose2d(now, then, 4, 2, 1), nn.GroupNorm(1, then), nn.ReLU(inplace=True)]
            now = then
        self.layers = nn.Sequential(*stack, nn.Conv2d(now, out, 1))

    def forward(self, tokens: Float[Tensor, "b n width"]) -> Float[Tensor, "b out side side"]:
        x = self.layers(tokens.mT.unflatten(2, self.grid).contiguous())
        same = x.shape[-1] == self.side
        return x if same else F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)


class Discriminator(nn.Sequential):
    """Pictures [B, C, side, side] to logits [B] of being real: DCGAN's strided convolutions (Radford et al. 2016), normalised
    over each picture, down to about four pixels a side."""

    def __init__(self, channels: int, side: int, width: int = 32) -> None:
        stack: list[nn.Module] = []
        for i in range(max(1, round(log2(side / 4)))):
            then = min(width * 2**i, 256)
            stack += [nn.Conv2d(channels, then, 4, 2, 1), *([nn.GroupNorm(1, then)] if i else []), nn.LeakyReLU(0.2)]
            channels = then
        super().__init__(*stack, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1), nn.Flatten(0))


def _normalisation(norm: Norm, width: int, affine: bool) -> list[nn.Module]:
    if norm == "batch":
        return [nn.BatchNorm1d(width, affine=affine)]
    if norm == "layer":
        return [nn.LayerNorm(width, elementwise_affine=affine)]
    return []
