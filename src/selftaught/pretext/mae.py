"""MAE: most patches are hidden, and their pixels are predicted from the few that are seen.

He, Chen, Xie, Li, Dollár, Girshick 2022, "Masked Autoencoders Are Scalable Vision Learners".
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selftaught.batch import Batch, Seen, Share, Shown, Step
from selftaught.encoders import Encoder
from selftaught.encoders.init import init_transformer
from selftaught.modality.base import Modality
from selftaught.modality.image.units import patchify, unpatchify
from selftaught.pretext.base import Pretext, customised


def random_masking(noise: Float[Tensor, "b n"], mask: float) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b m"]]:
    """Indices of kept and of hidden patches: the `mask` share with the largest noise is hidden (appendix A.1).

    At least one patch is kept and one hidden.
    """
    n = noise.shape[1]
    kept = min(max(1, round(n * (1 - mask))), n - 1)
    order = noise.argsort(dim=1)
    return order[:, :kept], order[:, kept:]


class MAE(Pretext):
    """The encoder sees visible patches alone; a small decoder fills in the hidden ones."""

    @dataclass(frozen=True)
    class Config:
        """mask: share of hidden patches (paper: 0.75).

        normalise: predict pixels standardised within each patch (paper, table 1d).
        decoder_width, decoder_depth: the paper's 512 and 8 belong to ViT-L at 224 px and would cost a small encoder twelve
            times its own work; None sizes them to the encoder: its width (512 at most), a third of its blocks.
        view: changes to the light view (random resized crop and flip).
        """

        mask: float = 0.75
        normalise: bool = True
        decoder_width: int | None = None
        decoder_depth: int | None = None
        view: dict[str, Any] | None = None

    family = "masked"
    paper = "He et al. 2022, arXiv:2111.06377"
    needs = frozenset({"keep"})
    wants = frozenset({"patches"})

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.view = customised(modality.light_view(), config.view)
        width = config.decoder_width or min(encoder.token_width, 512)
        depth = config.decoder_depth or max(1, (encoder.depth - 1) // 3)
        heads = next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)
        self.embed = nn.Linear(encoder.token_width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.position: Tensor
        self.register_buffer("position", build_sincos2d_pos_embed(list(encoder.grid), width), persistent=False)
        self.decoder = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)), nn.LayerNorm(width))
        self.predict = nn.Linear(width, encoder.patch**2 * encoder.config.channels)
        for part in (self.embed, self.decoder, self.predict):
            init_transformer(part)

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pictures, their patches, and which of those are kept and hidden."""
        x = self.modality.view(batch, self.view, stream=1)
        patches = patchify(x, self.encoder.patch)
        return x, patches, *random_masking(batch.uniform(2, patches.shape[1]), self.config.mask)

    def forward(self, batch: Batch) -> Step:
        """Loss: mean squared error on hidden patches only (section 3, "Reconstruction target")."""
        x, target, keep, hidden = self.drawn(batch)
        if self.config.normalise:
            mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) * torch.rsqrt(var + 1e-6)

        seen = self.embed(self.encoder(x, keep).tokens)
        predicted = self.decode(seen, keep, hidden)
        wanted = target.gather(1, hidden[..., None].expand(-1, -1, target.shape[2]))
        loss = (predicted.float() - wanted).square().mean()
        return Step(loss, {})

    def decode(
        self, seen: Float[Tensor, "b k d"], keep: Int[Tensor, "b k"], hidden: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m p"]:
        """Predicted pixels of the hidden patches.

        The order of tokens does not matter to a transformer, so the kept ones come first and nothing is unshuffled.
        """
        position = self.position.to(seen.dtype)
        guesses = self.mask_token + position[hidden]
        x = torch.cat([seen + position[keep], guesses.to(seen.dtype)], dim=1)
        return self.predict(self.decoder(x)[:, keep.shape[1] :])

    def show(self, batch: Batch) -> Shown:
        x, patches, _, hidden = self.drawn(batch)
        left = patches.scatter(1, hidden[..., None].expand(-1, -1, patches.shape[2]), 0.0)
        share = Share(hidden.numel(), patches.shape[0] * patches.shape[1], self.config.mask)
        seen = Seen("picture", x), Seen("reads", unpatchify(left, self.encoder.patch, self.encoder.grid))
        return Shown(seen, {"patches hidden": share})

    def chance(self, batch_size: int) -> float | None:
        """Standardised pixels have unit variance: predicting the mean costs (P - 1) / P, about 1."""
        return 1.0 if self.config.normalise else None
