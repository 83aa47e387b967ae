"""iGPT's encoder (Chen et al. 2020): a GPT over the pixels of a small picture, in reading order.

The picture is shrunk by averaging, and each pixel becomes one of levels^channels colours. The paper has 512 colours by
k-means over its data; here they are an even lattice over [0, 1], 8 x 8 x 8 of RGB: the same for all data, nothing is fitted.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from selftaught.batch import Encoded
from selftaught.encoders.base import Encoder, EncoderConfig
from selftaught.errors import UserError, unknown

# "small" is the paper's iGPT-S; a CPU bears the others.
SIZES: dict[str, dict[str, int]] = {
    "igpt_nano": {"width": 64, "layers": 4, "heads": 4, "side": 12},
    "igpt_micro": {"width": 128, "layers": 6, "heads": 4, "side": 16},
    "igpt_small": {"width": 512, "layers": 24, "heads": 8, "side": 32},
}
_LARGEST = 4096  # colours: each has an embedding, and a probability at every pixel


class _Block(nn.Module):
    """Normalisation before attention and before the feed-forward network; a pixel attends to itself and those before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b n d"], normed: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """`normed` is norm(x), which is also what is read of the middle layer."""
        q, k, v = self.qkv(normed).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class PixelGPT(nn.Module):
    """Colours [B, N] to the states [B, N, D] that guess them, and the normalised input [B, N, D] of the middle layer.

    The first state reads a start token alone, the others also the colours before theirs.
    """

    def __init__(self, colours: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.colours = nn.Embedding(colours, width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.colours.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Any number of pixels up to the picture's: its first ones."""
        before = self.colours(ids[:, :-1])
        x = torch.cat([self.start.to(before.dtype).expand(len(ids), 1, -1), before], 1)
        x = x + self.positions[: ids.shape[1]]
        middle = x
        blocks = cast("list[_Block]", self.blocks)
        for i, block in enumerate(blocks):
            normed = block.norm(x)
            middle = normed if i == len(blocks) // 2 else middle
            x = block(x, normed)
        return self.norm(x), middle


def _check(options: dict[str, Any], channels: int) -> None:
    """Raise UserError for an option that is none, or of another kind."""
    counts, colours = ("side", "levels", "width", "layers", "heads"), ("mean", "std")
    for name, value in options.items():
        if name not in (*counts, *colours):
            raise unknown("setting", f"encoder.options.{name}", [f"encoder.options.{n}" for n in (*counts, *colours)])
        if name in counts:
            good, constraint = type(value) is int and value >= 1, "a whole number of 1 or more"
        else:
            numbers = isinstance(value, list | tuple) and all(isinstance(x, float | int) for x in value)
            good, constraint = numbers and len(value) == channels, f"{channels} numbers, one a channel"
        if value is not None and not good:
            raise UserError(f"setting 'encoder.options.{name}' is {value!r}; it must be {constraint}")


class PixelEncoder(Encoder):
    """Reads normalised pictures [B, C, S, S] of any size. Tokens are the states that guess each pixel from those before it;
    pooled is the mean over pixels of the middle layer, whose features the paper finds best (section 4.2).

    options: side in pixels, and levels a channel (None: 8, or 16 of a single channel), of the picture that is read; width,
    layers, heads of the network; mean and std by which pictures were normalised. Without those the colours span 2.5 standard
    deviations on both sides of the mean.
    """

    abilities = frozenset({"causal_pixels"})

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        _check(config.options, config.channels)
        given: dict[str, Any] = {**SIZES[config.name], **config.options}
        self.config = config
        self.channels = config.channels
        self.side = min(given["side"], config.size)
        self.levels: int = given.get("levels") or (16 if self.channels == 1 else 8)
        self.colours = self.levels**self.channels
        if self.levels < 2 or self.colours > _LARGEST:
            raise UserError(
                f"setting 'encoder.options.levels' is {self.levels}, {self.colours} colours of {self.channels} channels; it must "
                f"be 2 or more, and give at most {_LARGEST} colours"
            )
        if self.side < 2 or given["width"] % given["heads"]:
            raise UserError(
                f"encoder '{config.name}' has side {self.side}, width {given['width']} and {given['heads']} heads; use a side "
                "of 2 or more, and a width that is a multiple of the heads"
            )
        self.width = self.token_width = given["width"]
        self.depth = given["layers"] // 2 + 1  # features are of the middle
        self.grid = (self.side, self.side)
        for name, usual in (("mean", 0.5), ("std", 0.2)):
            values = torch.tensor(given.get(name) or [usual] * self.channels).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.model = PixelGPT(self.colours, self.side**2, given["width"], given["layers"], given["heads"])

    def quantise(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """The colour of each pixel of the shrunk pictures, in reading order: its nearest level in every channel."""
        small = F.adaptive_avg_pool2d(x.float(), self.side) * self.std + self.mean
        level = (small.clamp(0, 1) * (self.levels - 1)).round().long().flatten(2)
        return sum((level[:, c] * self.levels**c for c in range(1, self.channels)), level[:, 0])

    def picture(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b c s s"]:
        """Pictures of these colours, normalised; `quantise` gives the colours back."""
        level = torch.stack([ids // self.levels**c % self.levels for c in range(self.channels)], 1)
        return (level.view(len(ids), self.channels, *self.grid) / (self.levels - 1) - self.mean) / self.std

    def forward(self, inputs: Tensor, keep: Tensor | None = None) -> Encoded:
        """tokens [B, side², D], pooled [B, D]."""
        if keep is not None:
            raise UserError(f"encoder '{self.config.name}' cannot skip masked tokens; use a vit_* encoder")
        states, middle = self.model(self.quantise(inputs))
        return Encoded(states, middle.mean(1))

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, i for the i-th block that features come from, `depth` for what follows."""
        if ".blocks." in f".{name}":
            return min(int(name.partition("blocks.")[2].partition(".")[0]) + 1, self.depth)
        return 0 if name.rpartition("model.")[2].startswith(("colours", "start", "positions")) else self.depth
