"""What the tasks that fill in have in common: what predicts hidden patches from the tokens of visible ones (the decoder of MAE,
the predictor of I-JEPA), and which encoders a loss of tokens alone can teach."""

import torch
from jaxtyping import Float, Int
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selftaught.encoders import Encoder
from selftaught.encoders.init import init_transformer
from selftaught.errors import UserError


def refuse_head(encoder: Encoder) -> None:
    """Raise UserError for an encoder with weights that its tokens do not come from, such as the norm of ConvNeXt's head, through
    which `pooled` is read: a loss of tokens leaves them as they began, and on several ranks DDP waits for their gradient."""
    config, training = encoder.config, encoder.training
    named = dict(encoder.named_parameters())
    with torch.enable_grad():
        tokens = encoder.eval()(torch.zeros(1, config.channels, config.size, config.size)).tokens
        found = torch.autograd.grad(tokens.sum(), list(named.values()), allow_unused=True)
    encoder.train(training)
    if left := [name for name, gradient in zip(named, found) if gradient is None]:
        raise UserError(
            f"encoder '{config.name}' has weights that its tokens do not come from ({left[0]}), and this task teaches by tokens "
            "alone; use a resnet* or vit_* encoder, such as resnet10_x0.5 or vit_micro"
        )


def leave_pooling(encoder: Encoder) -> None:
    """Take no gradient of the weights with which a published ViT pools its tokens: a loss of tokens alone has none for them, and
    on several ranks DDP would wait for it."""
    model = getattr(encoder, "model", encoder)
    for name in ("attn_pool", "fc_norm"):
        if isinstance(part := getattr(model, name, None), nn.Module):
            part.requires_grad_(False)


class Filling(nn.Module):
    """A transformer of its own width on visible tokens and on one mask token for each patch that is asked for, all with
    fixed sine-cosine positions.

    width, depth: of its blocks. out: numbers that are predicted of each patch.
    """

    def __init__(self, encoder: Encoder, width: int, depth: int, out: int) -> None:
        super().__init__()
        if width % 4:
            raise UserError(f"a decoder or predictor {width} wide has no sine-cosine positions; use a multiple of 4")
        heads = next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)
        self.embed = nn.Linear(encoder.token_width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.position: Tensor
        self.register_buffer("position", build_sincos2d_pos_embed(list(encoder.grid), width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)), nn.LayerNorm(width))
        self.predict = nn.Linear(width, out)
        for part in (self.embed, self.blocks, self.predict):
            init_transformer(part)

    def forward(
        self, seen: Float[Tensor, "b k d"], keep: Int[Tensor, "b k"], hidden: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m out"]:
        """What is predicted of the patches `hidden`, from the tokens of the patches `keep`.

        The order of tokens does not matter to a transformer, so the seen ones come first and nothing is unshuffled.
        """
        seen = self.embed(seen)
        position = self.position.to(seen.dtype)
        guesses = self.mask_token + position[hidden]
        x = torch.cat([seen + position[keep], guesses.to(seen.dtype)], dim=1)
        return self.predict(self.blocks(x)[:, keep.shape[1] :])
