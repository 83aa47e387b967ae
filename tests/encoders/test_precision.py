"""bf16 on a CPU: only where it was seen to be right."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.precision import fast_bf16, sound_in_bf16

SHAPES = [
    (kernel, stride, side)
    for kernel, stride in ((1, 1), (1, 2), (3, 1), (3, 2), (7, 2))
    for side in (1, 2, 3, 4, 8)
    if side >= max(stride, kernel // 2)
]


@pytest.mark.parametrize(
    ("config", "sound"),
    [
        (EncoderConfig("resnet10_x0.25", 16), True),
        (EncoderConfig("resnet18", 16), True),
        (EncoderConfig("resnet18", 16, published=True), False),  # its last stage strides over a single pixel
        (EncoderConfig("resnet18", 96), True),
        (EncoderConfig("resnet50", 224), True),
        (EncoderConfig("vit_micro", 16), True),
        (EncoderConfig("vit_tiny_patch16_224", 32), True),
        (EncoderConfig("mobilenetv3_small_050", 96), False),  # grouped convolutions
    ],
    ids=str,
)
def test_which_encoders_are_sound(config: EncoderConfig, sound: bool) -> None:
    encoder = build(config).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert sound_in_bf16(encoder) is sound
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def _leave_nans_in_free_memory() -> None:
    sizes = [4**k for k in range(2, 11)] * 4
    blocks = [torch.full((n,), torch.nan, dtype=t) for n in sizes for t in (torch.float32, torch.bfloat16)]
    del blocks


@pytest.mark.skipif(not fast_bf16(), reason="this CPU has no bf16 arithmetic")
@pytest.mark.parametrize("channels", [(16, 16), (64, 128), (256, 512)])
@pytest.mark.parametrize(("kernel", "stride", "side"), SHAPES)
def test_gradients_are_those_of_float32_in_every_shape_that_is_let_through(
    channels: tuple[int, int], kernel: int, stride: int, side: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, channels[0], side, side, generator=generator).to(memory_format=torch.channels_last)
    w = torch.randn(*channels[::-1], kernel, kernel, generator=generator).to(memory_format=torch.channels_last)

    def gradients(x: Tensor, w: Tensor, bf16: bool) -> tuple[Tensor, ...]:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = F.conv2d(x, w, stride=stride, padding=kernel // 2)
        _leave_nans_in_free_memory()
        return torch.autograd.grad(y.float().square().sum(), (x, w))

    exact = gradients(x.bfloat16().float(), w.bfloat16().float(), False)
    for expected, found in zip(exact, gradients(x, w, True), strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()
