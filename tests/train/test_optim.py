"""Schedules by hand, LARS against its formula, and which parameters are decayed."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selftaught.encoders import Encoder, EncoderConfig, build
from selftaught.errors import UserError
from selftaught.train.optim import LARS, OptimConfig, build_optimizer, lr_at, parameter_groups, set_lr


def encoder(name: str) -> Encoder:
    return build(EncoderConfig(name, size=16))


def names_of(module: nn.Module, groups: list[dict[str, Any]], **where: object) -> set[str]:
    """Names of the parameters in those groups whose options equal `where`."""
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)] for g in groups if all(g[k] == v for k, v in where.items()) for p in g["params"]}


def test_schedule_by_hand() -> None:
    config = OptimConfig(lr=0.4, warmup=4.0, min_lr_ratio=0.1)
    rates = [lr_at(step, 12, config) for step in range(13)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)  # the cosine's start
    assert rates[6] == pytest.approx(0.04 + 0.36 * (1 + math.sqrt(0.5)) / 2)  # a quarter of it
    assert rates[8] == pytest.approx(0.04 + 0.36 / 2)  # half
    assert rates[12] == pytest.approx(0.04)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_warmup_as_a_share_or_none_and_a_constant_rate() -> None:
    assert [lr_at(s, 100, OptimConfig(warmup=0.04)) for s in range(100)] == [
        lr_at(s, 100, OptimConfig(warmup=4.0)) for s in range(100)
    ]
    assert lr_at(0, 100, OptimConfig(lr=0.3, warmup=0.0)) == pytest.approx(0.3)
    assert {lr_at(s, 10, OptimConfig(lr=0.3, warmup=0.0, min_lr_ratio=1.0)) for s in range(10)} == {0.3}
    assert lr_at(0, 1, OptimConfig(lr=0.3)) == pytest.approx(0.3)
    assert lr_at(2, 5, OptimConfig(lr=0.3, warmup=30.0)) == pytest.approx(0.03)  # a run shorter than its warm-up


def test_vit_groups() -> None:
    vit = encoder("vit_micro")
    groups = parameter_groups(vit, OptimConfig(weight_decay=0.3))
    free = names_of(vit, groups, weight_decay=0.0)
    decayed = names_of(vit, groups, weight_decay=0.3)
    assert free | decayed == {name for name, _ in vit.named_parameters()}
    local = {"pos_embed", "norm.weight", "blocks.0.norm1.weight", "blocks.1.mlp.fc1.bias", "patch_embed.proj.bias"}
    assert {f"model.{name}" for name in local} <= free
    assert {"model.patch_embed.proj.weight", "model.blocks.0.attn.qkv.weight"} <= decayed
    assert decayed == {n for n, p in vit.named_parameters() if n.endswith(".weight") and p.ndim > 1}


def test_resnet_groups_and_frozen_parameters() -> None:
    resnet = nn.ModuleDict({"encoder": encoder("resnet10_x0.5"), "head": nn.Linear(256, 3)})
    resnet.get_submodule("encoder.model.layer1").requires_grad_(False)
    groups = parameter_groups(resnet, OptimConfig(name="lars"))
    grouped = names_of(resnet, groups)
    assert grouped == {n for n, p in resnet.named_parameters() if p.requires_grad}
    adapted = names_of(resnet, groups, adapt=True)
    assert adapted == {n for n in grouped if resnet.get_parameter(n).ndim == 4} | {"head.weight"}
    assert names_of(resnet, groups, weight_decay=0.0) == grouped - adapted


def test_embeddings_are_not_decayed_and_parametrised_weights_are() -> None:
    module = nn.ModuleDict(
        {
            "words": nn.Embedding(5, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "last": nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False)),
        }
    )
    module.register_parameter("mask_token", nn.Parameter(torch.zeros(1, 1, 4)))
    groups = parameter_groups(module, OptimConfig(weight_decay=0.1))
    free = {"words.weight", "mask_token", "attention.in_proj_bias", "attention.out_proj.bias"}
    assert names_of(module, groups, weight_decay=0.0) == free
    assert "last.parametrizations.weight.original1" in names_of(module, groups, weight_decay=0.1)


def test_layer_decay() -> None:
    vit = encoder("vit_micro")
    config = OptimConfig(lr=1.0, layer_decay=0.5)
    optimizer = build_optimizer(vit, config, "cpu", vit.layer_of)
    for depth in range(vit.depth + 1):
        expected = {name for name, _ in vit.named_parameters() if vit.layer_of(name) == depth}
        assert expected
        assert names_of(vit, optimizer.param_groups, lr_factor=0.5 ** (vit.depth - depth)) == expected
    set_lr(optimizer, 0.2)
    assert {g["lr"] for g in optimizer.param_groups} == {0.2 * 0.5**i for i in range(vit.depth + 1)}
    with pytest.raises(UserError, match=r"layer_decay 0\.5 needs"):
        parameter_groups(vit, config)
    assert {g["lr_factor"] for g in parameter_groups(vit, OptimConfig(), vit.layer_of)} == {1.0}


def naive_lars(w: Tensor, gradients: list[Tensor], rates: list[float], decay: float, adapt: bool) -> Tensor:
    """You et al. 2017, algorithm 1, one tensor at a time in float64."""
    w, v = w.double(), torch.zeros_like(w).double()
    for g, lr in zip(gradients, rates):
        u = g.double() + decay * w
        trust = 0.001 * w.norm() / u.norm() if adapt and w.norm() > 0 and u.norm() > 0 else 1.0
        v = 0.9 * v + lr * trust * u
        w = w - v
    return w


def test_lars_is_its_formula() -> None:
    g = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4))
    nn.init.zeros_(module[2].weight)  # a zero tensor is updated with ratio 1
    config = OptimConfig(name="lars", lr=2.0, weight_decay=0.1)
    optimizer = build_optimizer(module, config, "cpu")
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    seen: dict[str, list[Tensor]] = {name: [] for name in start}
    rates = [2.0, 1.0, 0.3, 0.7]
    for lr in rates:
        for name, p in module.named_parameters():
            p.grad = torch.randn(p.shape, generator=g)
            seen[name].append(p.grad.clone())
        set_lr(optimizer, lr)
        optimizer.step()
    for name, p in module.named_parameters():
        matrix = p.ndim == 2
        expected = naive_lars(start[name], seen[name], rates, 0.1 if matrix else 0.0, adapt=matrix)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_lars_skips_what_has_no_gradient_and_takes_a_closure() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([used, unused], lr=1.0)

    def closure() -> Tensor:
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert (used < 1).all()
    assert (unused == 1).all()
    used.grad = torch.zeros(2, 2)  # no gradient, no decay: ratio 1, and momentum alone moves it
    optimizer.step()
    assert used.isfinite().all()


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_state_round_trip_continues_to_the_same_bits(name: str) -> None:
    def run(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            set_lr(optimizer, lr_at(step, 6, config))
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()

    config = OptimConfig(name=name, lr=0.1, warmup=2.0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    first = nn.Linear(6, 4)
    optimizer = build_optimizer(first, config, "cpu")
    before = first.weight.detach().clone()
    run(first, optimizer, range(3))
    assert not torch.equal(before, first.weight)
    second = nn.Linear(6, 4)
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, config, "cpu")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # it would share the tensors
    run(first, optimizer, range(3, 6))
    run(second, resumed, range(3, 6))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_bad_settings_name_the_field() -> None:
    for setting, message in [
        ({"lr": 0.0}, "lr 0.0 must be above 0"),
        ({"warmup": 2.5}, "warmup 2.5 must be"),
        ({"momentum": 1.0}, "momentum 1.0 must be"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"layer_decay": 0.0}, "layer_decay 0.0 must be"),
        ({"clip_norm": 0.0}, "clip_norm 0.0 must be"),
        ({"min_lr_ratio": -0.1}, "min_lr_ratio -0.1 must be"),
        ({"weight_decay": -0.1}, "weight_decay -0.1 must be"),
    ]:
        with pytest.raises(UserError, match=message):
            OptimConfig(**setting)  # type: ignore[arg-type]
    config = OptimConfig()
    object.__setattr__(config, "name", "adam")  # the tests' own type checks would stop OptimConfig(name="adam")
    with pytest.raises(UserError, match="unknown optimiser 'adam'; did you mean 'adamw'"):
        config.__post_init__()
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="Linear has no trainable parameter"):
        parameter_groups(frozen, OptimConfig())
