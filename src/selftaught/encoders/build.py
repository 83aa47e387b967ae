"""From a config to an encoder, and the automatic choice for data and machine."""

from pathlib import Path

import torch
from timm.models import load_model_config_from_hf

from selftaught.encoders.base import Encoder, EncoderConfig
from selftaught.encoders.files import read_tensors
from selftaught.encoders.pixels import SIZES as PIXELS
from selftaught.encoders.pixels import PixelEncoder
from selftaught.encoders.timm_models import build_timm
from selftaught.errors import UserError


def choose(size: int, device: str, needs: frozenset[str] = frozenset()) -> str:
    """An encoder that learns within the hour on this machine: small on a CPU, the field's usual ones on a GPU."""
    if "causal_pixels" in needs:
        return "igpt_nano" if device == "cpu" else "igpt_micro"
    if needs & {"keep", "hide"}:
        return "vit_micro" if device == "cpu" else ("vit_mini" if size <= 64 else "vit_small_patch16_224")
    if device == "cpu":
        return "resnet10_x0.5" if size <= 64 else "resnet10"
    return "resnet18" if size <= 64 else "resnet50"


def named(name: str, size: int, channels: int = 3) -> EncoderConfig:
    """The config of an encoder as users name it: NAME, `timm:NAME` (with timm's weights) or `hf:REPO`.

    A repository's description is read from the hub, or from its cache on this disk. UserError where there is none.
    """
    if name.startswith("timm:"):
        return EncoderConfig(name.removeprefix("timm:"), size, channels, weights="timm")
    if not name.startswith("hf:"):
        return EncoderConfig(name, size, channels)
    try:
        _, architecture, options = load_model_config_from_hf(name.removeprefix("hf:"))
    except Exception as error:  # the hub's client and timm's reader have many errors of their own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"'{name}' cannot be read as a timm model: {first}") from error
    return EncoderConfig(architecture, size, channels, weights=name, options=options or {})


def load_weights(encoder: Encoder, path: Path) -> None:
    """Fill an encoder from a file; its names may start with `encoder.`, `model.`, `module.` or `backbone.`."""
    own = encoder.state_dict()
    given = {}
    for name, value in read_tensors(path).items():
        bare = name
        for prefix in ("module.", "encoder.", "backbone.", "model."):
            bare = bare.removeprefix(prefix)
        given[f"model.{bare}"] = value
    adapted = encoder.adapted(given)
    found = {name: value for name, value in adapted.items() if name in own and own[name].shape == value.shape}
    # BatchNorm's counter, which old files lack, counts for nothing where momentum is fixed, as it is here.
    missing = sorted(n for n in set(own) - set(found) if not n.endswith("num_batches_tracked"))
    if missing:
        raise UserError(
            f"weights '{path}' do not fit encoder '{encoder.config.name}': {len(missing)} of {len(own)} tensors missing or "
            f"of another shape, first '{missing[0].removeprefix('model.')}' {tuple(own[missing[0]].shape)}"
        )
    encoder.load_state_dict({**own, **found})


def build(config: EncoderConfig, seed: int = 0) -> Encoder:
    """Build an encoder; its random weights are a function of `seed` and leave the global generator as it was."""
    if config.size < 8:
        raise UserError(f"size {config.size} is below 8; use --size 8 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.options.get("model_type") in ("sasrec", "bert4rec"):
            from selftaught.encoders.sequences import SequenceEncoder

            encoder: Encoder = SequenceEncoder(config)
        elif config.options.get("model_type") == "lightgcn":
            from selftaught.encoders.graphs import GraphEncoder

            encoder = GraphEncoder(config)
        elif config.vocabulary:
            from selftaught.encoders.transformers_models import build_transformers

            encoder = build_transformers(config)
        elif config.name in PIXELS:
            encoder = PixelEncoder(config)
        else:
            encoder = build_timm(config)
    if config.weights_file is not None:
        load_weights(encoder, config.weights_file)
    return encoder
