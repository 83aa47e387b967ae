"""Where bf16 can be trusted on a CPU."""

from typing import Any

import torch
from torch import nn

from selftaught.encoders.base import Encoder


def fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX); elsewhere torch converts, which is slower."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def sound_in_bf16(encoder: Encoder) -> bool:
    """Whether a CPU's bf16 kernels compute the gradient of every convolution of this encoder, at its size.

    oneDNN (seen with torch 2.13) leaves what was in memory in the weight gradient of a bf16 convolution whose stride, or
    half kernel, is larger than its input: where 16-px pictures have shrunk to one pixel, say. Grouped convolutions are
    not trusted either, because they were not checked.
    """
    if encoder.config.vocabulary:
        return True  # no convolution
    sound = True

    def check(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal sound
        assert isinstance(module, nn.Conv2d)
        for pixels, kernel, stride, dilation in zip(
            inputs[0].shape[2:], module.kernel_size, module.stride, module.dilation, strict=True
        ):
            sound &= module.groups == 1 and pixels >= max(stride, kernel // 2 * dilation)

    hooks = [m.register_forward_pre_hook(check) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    training, config = encoder.training, encoder.config
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, config.channels, config.size, config.size))
    finally:
        encoder.train(training)
        for hook in hooks:
            hook.remove()
    return sound
