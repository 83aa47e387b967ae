"""Low-rank adaptation of encoders of text and a vision transformer: the start, the gradient, the merge, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from selftaught.batch import Tokens
from selftaught.downstream import lora
from selftaught.encoders import Encoder, EncoderConfig, build
from selftaught.encoders.transformers_models import describe
from selftaught.errors import UserError

ADAPTED = {"bert_tiny": 4, "modernbert_tiny": 4, "gpt2_nano": 4, "vit_micro": 6, "vit_tiny_patch16_224": 12}


def encoder_called(name: str) -> Encoder:
    if name.startswith("vit"):
        return build(EncoderConfig(name, 16, 3)).eval()
    return build(EncoderConfig(name, 16, 0, options=describe(name), vocabulary=100)).eval()


def inputs_of(name: str) -> Any:
    g = torch.Generator().manual_seed(0)
    if name.startswith("vit"):
        return torch.randn(3, 3, 16, 16, generator=g)
    valid = torch.arange(9) < torch.tensor([9, 4, 7])[:, None]
    return Tokens(torch.randint(5, 100, valid.shape, generator=g), valid, valid)


def corrections(encoder: Encoder) -> list[lora.LowRank]:
    return [m for m in encoder.modules() if isinstance(m, lora.LowRank)]


def shaken(encoder: Encoder) -> Encoder:
    """With a B that is not zero, as after some steps."""
    for part in corrections(encoder):
        nn.init.normal_(part.B, std=0.05)
    return encoder


@pytest.mark.parametrize("name", ADAPTED)
def test_it_starts_as_the_pretrained_network_to_the_bit_and_trains_a_and_b_alone(name: str) -> None:
    encoder, x = encoder_called(name), inputs_of(name)
    before = encoder(x).pooled
    lora.adapt(encoder, 4)
    assert torch.equal(encoder(x).pooled, before)
    assert len(corrections(encoder)) == ADAPTED[name]
    trained = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * ADAPTED[name]
    assert all(n.rpartition(".")[2] in ("A", "B") for n in trained)
    assert {encoder.layer_of(n) for n in trained} == set(range(1, encoder.depth))


@pytest.mark.parametrize("name", ADAPTED)
def test_merged_is_unmerged_and_an_ordinary_encoder(name: str) -> None:
    encoder, x = encoder_called(name), inputs_of(name)
    names = set(encoder.state_dict())
    before = encoder(x).pooled
    lora.adapt(encoder, 4)
    unmerged = shaken(encoder)(x).pooled
    assert (unmerged - before).abs().max() > 1e-3
    lora.merge(encoder)
    torch.testing.assert_close(encoder(x).pooled, unmerged, rtol=1e-5, atol=1e-5)
    plain = encoder_called(name)
    assert set(encoder.state_dict()) == names
    plain.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(plain(x).pooled, unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ADAPTED)
def test_gradient_is_that_of_the_formula(name: str) -> None:
    """dL/dA = 2 B^T G and dL/dB = 2 G A^T, where G [out, in] is the gradient of the merged weight."""
    encoder, x = encoder_called(name), inputs_of(name)
    lora.adapt(encoder, 4)
    shaken(encoder)
    merged = encoder_called(name)
    lora.adapt(merged, 4)
    merged.load_state_dict(encoder.state_dict())
    lora.merge(merged)
    merged.requires_grad_(True)
    weight = torch.randn(encoder.width, generator=torch.Generator().manual_seed(1))
    for network in (encoder, merged):
        (network(x).pooled @ weight).sum().backward()
    own = dict(merged.named_modules())
    for path, module in encoder.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        part, gradient = module.parametrizations.weight[0], own[path].get_parameter("weight").grad
        gradient = gradient.T if part.flipped else gradient
        torch.testing.assert_close(part.A.grad, 2 * part.B.T @ gradient, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.B.grad, 2 * gradient @ part.A.T, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_adapted() -> None:
    with pytest.raises(UserError, match=r"adapts attention, and encoder 'resnet10_x0.25' has none; use full, head"):
        lora.adapt(build(EncoderConfig("resnet10_x0.25", 16, 3)))
    for rank in (0, 128):
        with pytest.raises(UserError, match=f"mode lora{rank} is not of a rank from 1 to 127"):
            lora.adapt(encoder_called("bert_tiny"), rank)
