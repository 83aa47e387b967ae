"""timm models as encoders: any name, with stems and patches that fit small pictures."""

import math
import re
from collections.abc import Callable
from typing import Any, cast

import timm
import torch
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn

from selftaught.batch import Encoded
from selftaught.encoders.base import Encoder, EncoderConfig
from selftaught.encoders.init import init_transformer
from selftaught.encoders.pixels import SIZES as PIXELS
from selftaught.errors import UserError, unknown


def _small_resnet(multiplier: float) -> Callable[[EncoderConfig], nn.Module]:
    channels = tuple(round(c * multiplier) for c in (64, 128, 256, 512))

    def make(config: EncoderConfig) -> nn.Module:
        block: Any = BasicBlock  # timm's annotation asks for an instance
        model: Any = ResNet(block, (1, 1, 1, 1), num_classes=0, in_chans=config.channels, channels=channels)
        model.conv1 = nn.Conv2d(config.channels, channels[0], 7, stride=2, padding=3, bias=False)
        model.bn1 = nn.BatchNorm2d(channels[0])
        first = model.layer1[0]
        first.conv1 = nn.Conv2d(channels[0], channels[0], 3, padding=1, bias=False)
        first.downsample = None
        for module in (model.conv1, first.conv1):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return model

    return make


def _small_vit(width: int, depth: int, heads: int) -> Callable[[EncoderConfig], nn.Module]:
    def make(config: EncoderConfig) -> nn.Module:
        return VisionTransformer(
            img_size=config.size,
            patch_size=patch_for(config.size),
            in_chans=config.channels,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            drop_path_rate=config.drop_path,
        )

    return make


# timm has nothing below ~5 M parameters that learns from 32 px on a CPU within minutes.
SMALL: dict[str, Callable[[EncoderConfig], nn.Module]] = {
    "resnet10_x0.25": _small_resnet(0.25),
    "resnet10_x0.5": _small_resnet(0.5),
    "resnet10": _small_resnet(1.0),
    "vit_micro": _small_vit(128, 6, 4),
    "vit_mini": _small_vit(192, 9, 3),
}


# Networks that are built for pictures of one size; ViTEncoder is not bound to it.
_ONE_SIZE = (
    r"(vit|deit|eva|beit|cait|swin|mixer|gmixer|gmlp|resmlp|maxvit|maxxvit|coatnet|coat_|levit|crossvit|nest|mvitv2|volo|tnt|pit_"
    r"|convit|visformer|efficientformer|tiny_vit|hiera|sequencer)"
)


def patch_for(size: int) -> int:
    """Patch side in pixels: about 8 x 8 tokens for small pictures, 16 px from 112 px on (the ViT paper's)."""
    wanted = 16 if size >= 112 else max(1, round(size / 8))
    fitting = [p for p in range(1, size + 1) if size % p == 0]
    return min(fitting, key=lambda p: (abs(p - wanted), p))


def _fit_stem(model: Any, size: int) -> None:
    """The CIFAR stem (He et al. 2016, section 4.2; SimCLR, appendix B.9): 3x3 convolution, no max-pooling.

    Up to 48 px at full resolution; up to 112 px with stride 2, so that the last stage still sees several cells.
    """
    if size > 112:
        return
    old = model.conv1
    if not isinstance(old, nn.Conv2d):
        return  # deep stems (resnet18d ...) keep their design
    model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1 if size <= 48 else 2, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _sincos_positions(model: VisionTransformer) -> None:
    """Start learnt positions at the 2-D sine-cosine table (MoCo v3 and MAE keep it fixed)."""
    positions = model.pos_embed
    if positions is None or positions.shape[-1] % 4:
        return
    prefix = positions.shape[1] - model.patch_embed.num_patches
    with torch.no_grad():
        positions[0, prefix:] = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), positions.shape[-1])


def _create(config: EncoderConfig) -> nn.Module:
    if config.name in SMALL:
        return SMALL[config.name](config)
    if not timm.is_model(config.name):
        raise unknown("encoder", config.name, [*SMALL, *PIXELS, *timm.list_models()])
    options: dict[str, Any] = {**config.options, "num_classes": 0, "in_chans": config.channels}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if re.match(_ONE_SIZE, config.name):
        options["img_size"] = config.size
    # From nothing, mean pooling over patches: a class token is trained only by losses that read it.
    if re.match(r"(vit|deit)_", config.name) and not config.as_published:
        options |= {"patch_size": min(patch_for(config.size), _own_patch(config.name)), "global_pool": "avg"}
        options["fc_norm"] = False
    from_hub = config.weights is not None and config.weights_file is None
    name = f"hf-hub:{config.weights[3:]}" if config.weights and config.weights.startswith("hf:") else config.name
    try:
        model = timm.create_model(name, pretrained=from_hub, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        del options["img_size"]  # built for one size without being told which
        model = timm.create_model(name, pretrained=from_hub, **options)
    own = model.patch_embed.img_size if isinstance(model, VisionTransformer) else None
    if own not in (None, (config.size, config.size)):  # one that its name does not tell
        model = timm.create_model(name, pretrained=from_hub, **options, img_size=config.size)
    return model


def _own_patch(name: str) -> int:
    found = re.search(r"patch(\d+)", name)
    return int(found.group(1)) if found else 16


class TimmEncoder(Encoder):
    """Any timm model: tokens are the last feature map, pooled is what its head would read."""

    def __init__(self, config: EncoderConfig, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.model: Any = model
        self.token_width = int(cast(Any, model).num_features)
        with torch.no_grad():
            training = model.training
            probe = self.eval()(torch.zeros(1, config.channels, config.size, config.size))
            self.train(training)
        self.width = probe.pooled.shape[1]
        rows = math.isqrt(probe.tokens.shape[1])
        if rows**2 == probe.tokens.shape[1]:
            self.grid = (rows, rows)
        self.depth = len(self._blocks()) + 1
        if not re.match(_ONE_SIZE, config.name):
            self.abilities = frozenset({"sizes"})

    def forward(self, inputs: Tensor, keep: Tensor | None = None) -> Encoded:
        """inputs [B, C, S, S] -> tokens [B, N, D], pooled [B, width]."""
        if keep is not None:
            raise UserError(f"encoder '{self.config.name}' cannot skip masked tokens; use a vit_* encoder")
        features = self.model.forward_features(inputs)
        pooled = self.model.forward_head(features, pre_logits=True)
        if features.ndim == 4:
            if features.shape[1] != self.token_width:  # NHWC models (Swin and kin)
                features = features.permute(0, 3, 1, 2)
            features = features.flatten(2).transpose(1, 2)
        return Encoded(features, pooled.flatten(1))

    def _blocks(self) -> list[str]:
        """Names of the repeated parts, input to output, from timm's own grouping."""
        groups = self.model.group_matcher(coarse=True)["blocks"]
        pattern = groups if isinstance(groups, str) else groups[0][0]
        seen: dict[str, None] = {}
        for name, _ in self.model.named_parameters():
            if found := re.match(pattern, name):
                seen.setdefault(found.group(0), None)
        return list(seen)

    def layer_of(self, name: str) -> int:
        """0 for the stem, i for the i-th block, `depth` for what follows."""
        local = name.removeprefix("model.")
        blocks = self._blocks()
        for depth, block in enumerate(blocks, start=1):
            if local == block or local.startswith(block + "."):
                return depth
        stem = re.match(r"(conv1|bn1|stem|patch_embed|cls_token|pos_embed|reg_token|norm_pre|conv_stem)", local)
        return 0 if stem else self.depth


class ViTEncoder(TimmEncoder):
    """timm's VisionTransformer, which can also encode the visible patches only (MAE, He et al. 2022), read a token in the place
    of hidden ones (SimMIM, iBOT), and read pictures of other sizes (DINO)."""

    abilities = frozenset({"keep", "hide", "sizes"})

    def __init__(self, config: EncoderConfig, model: VisionTransformer) -> None:
        super().__init__(config, model)
        self.abilities = type(self).abilities
        patches = cast(Any, model.patch_embed)
        rows, columns = patches.grid_size
        self.grid = (rows, columns)
        self.patch = patches.patch_size[0]

    def adapted(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Position embeddings of another grid are resampled (ViT, Dosovitskiy et al. 2021, section 3.2)."""
        own, given = self.model.pos_embed, weights.get("model.pos_embed")
        if own is None or given is None or given.ndim != 3 or given.shape[2] != own.shape[2]:
            return weights
        prefix = own.shape[1] - self.grid[0] * self.grid[1]
        side = math.isqrt(given.shape[1] - prefix)
        if side * side != given.shape[1] - prefix:  # not a square grid, or other prefix tokens: no fit
            return weights
        resampled = resample_abs_pos_embed(given, list(self.grid), (side, side), num_prefix_tokens=prefix)
        return {**weights, "model.pos_embed": resampled}

    def forward(self, inputs: Tensor, keep: Tensor | None = None, hide: tuple[Tensor, Tensor] | None = None) -> Encoded:
        """tokens [B, N or K, D] are patches only; class and register tokens are read by `pooled`."""
        vit = self.model
        x = self._embedded(inputs, hide)
        prefix = vit.num_prefix_tokens
        if keep is not None:
            patches = x[:, prefix:].gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
            x = torch.cat([x[:, :prefix], patches], dim=1)
        x = vit.norm(vit.blocks(vit.norm_pre(x)))
        return Encoded(x[:, prefix:], vit.forward_head(x, pre_logits=True))

    def _embedded(self, inputs: Tensor, hide: tuple[Tensor, Tensor] | None) -> Tensor:
        """Patches [B, prefix + N, D] with their positions, which are resampled for pictures of another size."""
        vit = self.model
        embed = vit.patch_embed
        own, grid = embed.grid_size, tuple(side // embed.patch_size[0] for side in inputs.shape[2:])
        x = embed(inputs) if grid == own else embed.norm(embed.proj(inputs).flatten(2).transpose(1, 2))
        if hide is not None:
            x = torch.where(hide[0][..., None], hide[1].to(x.dtype), x)
        if grid == own:
            return vit._pos_embed(x)
        tokens = (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token)
        prefix = [t.expand(len(x), -1, -1) for t in tokens if t is not None]
        of_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        position = resample_abs_pos_embed(vit.pos_embed, list(grid), list(own), num_prefix_tokens=of_prefix)
        if vit.no_embed_class:
            return vit.pos_drop(torch.cat([*prefix, x + position], 1))
        return vit.pos_drop(torch.cat([*prefix, x], 1) + position)


def build_timm(config: EncoderConfig) -> Encoder:
    """The encoder that `config` names, with random weights or the hub's; UserError where it does not fit the size."""
    try:
        model = _create(config)
        if isinstance(model, ResNet) and (config.name in SMALL or not config.as_published):
            _fit_stem(model, config.size)
        if isinstance(model, VisionTransformer):
            if config.weights is None:
                init_transformer(model)
                _sincos_positions(model)
            hybrid = isinstance(
                model.patch_embed, HybridEmbed
            )  # whose patches are of a convolutional network's features
            if not hybrid:
                return ViTEncoder(config, model)
        return TimmEncoder(config, model)  # tries it on an empty picture
    except (AttributeError, TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"encoder '{config.name}' cannot be built for {config.size} px: {first}") from error
