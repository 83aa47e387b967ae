"""Optimisers, their parameter groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from selftaught.errors import UserError, unknown

LayerOf = Callable[[str], int]
_NAMES = ("adamw", "sgd", "lars")


@dataclass(frozen=True)
class OptimConfig:
    """How weights are updated.

    name: "adamw", "sgd" (Nesterov momentum) or "lars" (for batches from about 1024 on).
    lr: the peak learning rate, as used (no hidden scaling by batch size).
    weight_decay: on matrices and kernels only; see parameter_groups.
    betas: of adamw. momentum: of sgd and lars.
    warmup: below 1, a share of all steps; from 1 on, a number of steps.
    min_lr_ratio: where the cosine ends, as a share of lr; 1 keeps lr constant after the warm-up.
    layer_decay: each layer further from the output learns this factor slower (0.65-0.9 in fine-tuning); None: equal.
    clip_norm: largest norm of the whole gradient; None: no clipping. The training loop applies it.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    warmup: float = 0.05
    min_lr_ratio: float = 0.0
    layer_decay: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise unknown("optimiser", self.name, _NAMES)
        checks: dict[str, tuple[bool, str]] = {
            "lr": (self.lr > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "betas": (all(0 <= b < 1 for b in self.betas), "in [0, 1)"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "warmup": (
                0 <= self.warmup < 1 or (self.warmup > 0 and self.warmup % 1 == 0),
                "a share below 1 or whole steps",
            ),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "in [0, 1]"),
            "layer_decay": (self.layer_decay is None or 0 < self.layer_decay <= 1, "in (0, 1], or None"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "above 0, or None"),
        }
        for field, (good, constraint) in checks.items():
            if not good:
                raise UserError(f"optimiser {field} {getattr(self, field)} must be {constraint}")


def parameter_groups(module: nn.Module, config: OptimConfig, layer_of: LayerOf | None = None) -> list[dict[str, Any]]:
    """Trainable parameters of `module`, in groups of equal weight decay and equal learning-rate factor.

    Only the weights of linear and convolutional maps are decayed and, with LARS, adapted; biases, normalisations,
    embeddings, position tables and class or mask tokens are not (see _is_map).

    layer_of: the depth of a parameter by its name, 0 at the input; needed by config.layer_decay, ignored without it.
    Each group has "params", "weight_decay", "lr" (at the peak), "lr_factor", "constant_lr" and, for LARS, "adapt". Parts that the
    module names in `constant_lr` keep their peak rate.
    Raises UserError for layer_decay without layer_of and for a module without trainable parameters.
    """
    if config.layer_decay is not None and layer_of is None:
        raise UserError(
            f"layer_decay {config.layer_decay} needs layers that are numbered, as finetune numbers them; leave it out"
        )
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise UserError(f"{type(module).__name__} has no trainable parameter; unfreeze some of it")
    embeddings = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    ratio = 1.0 if config.layer_decay is None else config.layer_decay
    depth = {name: 0 if layer_of is None or ratio == 1 else layer_of(name) for name, _ in named}
    top = max(depth.values())
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, p in named:
        decayed = _is_map(name, p) and id(p) not in embeddings
        constant_lr = name.partition(".")[0] in getattr(module, "constant_lr", ())
        group = groups.setdefault((depth[name], decayed, constant_lr), {"params": [], "constant_lr": constant_lr})
        group["params"].append(p)
        group["weight_decay"] = config.weight_decay if decayed else 0.0
        group["lr_factor"] = ratio ** (top - depth[name])
        group["lr"] = config.lr * group["lr_factor"]
        if config.name == "lars":
            group["adapt"] = decayed
    return [groups[key] for key in sorted(groups)]


def _is_map(name: str, p: Tensor) -> bool:
    """Whether a parameter is the matrix or kernel of a map, by torch's convention that these are called ...weight.

    Position tables, class and mask tokens have two or more dimensions too, but never that name. The last two parts
    of the name are read because torch calls the parametrised ones weight.original0, weight.original1.
    """
    return p.ndim >= 2 and any(part.endswith("weight") for part in name.split(".")[-2:])


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017, algorithm 1), as SimCLR uses it.

    For each tensor w with gradient g: u = g + weight_decay * w; v = momentum * v + lr * trust * |w| / |u| * u; w = w - v.
    The ratio is 1 where |w| or |u| is 0, and in groups whose "adapt" is False.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | list[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if one was given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        velocity = [self.state[p]["velocity"] for p in params]
        gradients = [p.grad for p in params if p.grad is not None]
        update = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
        if group["adapt"]:
            weight_norm = torch.stack(torch._foreach_norm(params))
            update_norm = torch.stack(torch._foreach_norm(update))
            ratio = group["trust"] * weight_norm / update_norm
            ratio = torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))
            torch._foreach_mul_(update, list((ratio * group["lr"]).unbind()))
        else:
            torch._foreach_mul_(update, group["lr"])
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, update)
        torch._foreach_sub_(params, velocity)


def build_optimizer(
    module: nn.Module, config: OptimConfig, device: torch.device | str, layer_of: LayerOf | None = None
) -> Optimizer:
    """The optimiser of `config` over the trainable parameters of `module`, which must already be on `device`."""
    groups = parameter_groups(module, config, layer_of)
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr, betas=config.betas, fused=torch.device(device).type in ("cpu", "cuda"))
    if config.name == "sgd":  # fused SGD has no sharded form (FSDP2)
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, foreach=True)
    return LARS(groups, lr=config.lr, momentum=config.momentum)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step `step`, the first being 0, in a run of `steps`.

    Linear warm-up over w steps, lr * (step + 1) / w, then a half cosine (Loshchilov & Hutter 2017, eq. 5) from lr at
    step w towards lr * min_lr_ratio, which step `steps` would reach.
    """
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    share = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


def set_lr(optimizer: Optimizer, lr: float, constant_lr: float | None = None) -> None:
    """Give every group of parameter_groups its learning rate: `lr`, or `constant_lr` (None: `lr` too) where the group keeps it,
    times the group's lr_factor."""
    for group in optimizer.param_groups:
        group["lr"] = (constant_lr if group["constant_lr"] and constant_lr is not None else lr) * group["lr_factor"]
