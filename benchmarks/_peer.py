"""lightly's modules put together as its examples do, around a network that both sides share. Import it after timm."""

from __future__ import annotations

from typing import Any

import timm
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
    SimCLRProjectionHead,
)
from torch import Tensor, nn


class PeerSimCLR(nn.Module):
    """lightly's examples/pytorch/simclr.py, its loss included; the backbone returns pooled features."""

    def __init__(self, backbone: nn.Module, width: int, temperature: float = 0.5) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(width, width, 128)
        self.criterion = NTXentLoss(temperature)

    def forward(self, views: list[Tensor]) -> Tensor:
        z0, z1 = (self.projection_head(self.backbone(x).flatten(start_dim=1)) for x in views)
        return self.criterion(z0, z1)


class PeerMAE(nn.Module):
    """lightly's examples/pytorch/mae.py around timm's network as it is, with a decoder of given size."""

    def __init__(self, encoder: str, size: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if timm.is_model(encoder):
            vit: Any = timm.create_model(encoder, img_size=size, num_classes=0)
        else:
            vit = timm.models.VisionTransformer(
                img_size=size, patch_size=4, num_classes=0, embed_dim=128, depth=6, num_heads=4
            )
        self.patch = vit.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.length = self.backbone.sequence_length
        self.embed = nn.Linear(vit.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(vit.patch_embed.num_patches, width, depth, heads)
        self.predict = nn.Linear(width, self.patch**2 * 3)

    def forward(self, views: list[Tensor]) -> Tensor:
        images = views[0]
        shape = (len(images), self.length)
        keep, hidden = utils.random_token_mask(size=shape, mask_ratio=0.75, device=images.device)
        seen = self.embed(self.backbone.encode(images=images, idx_keep=keep))
        x = utils.repeat_token(self.decoder.mask_token, shape)
        x = utils.set_at_index(x, keep, seen.type_as(x))
        predicted = self.predict(utils.get_at_index(self.decoder(x), hidden))
        target = utils.get_at_index(utils.patchify(images, self.patch), hidden - 1)
        return nn.functional.mse_loss(predicted, target)
