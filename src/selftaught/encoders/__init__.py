"""Encoders: the module that is kept after pretraining. `build` makes one from its frozen, JSON-able config."""

from selftaught.encoders import _torchvision as _torchvision  # before anything imports timm
from selftaught.encoders.base import Encoder, EncoderConfig
from selftaught.encoders.build import build, choose, named

__all__ = ["Encoder", "EncoderConfig", "build", "choose", "named"]
