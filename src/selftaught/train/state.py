"""The state of a run as named tensors, and back, bit for bit; whole tensors also where ranks hold only shards."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from selftaught.ema import EMA
from selftaught.errors import UserError
from selftaught.train.checkpoint import Checkpoint

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
# Weights that did not move yet have no state, which torch takes for a mistake otherwise.
_SOME = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


def capture(
    task: nn.Module, optimizer: Optimizer, ema: EMA | None, sharded: bool
) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    """Tensors by group ("model", "optim", "ema") and the optimiser's settings, JSON values.

    The optimiser's state is named `PARAMETER/KEY`, so it does not depend on the order of parameters.
    """
    model = _module_state(task, sharded)
    if sharded:
        whole: Any = get_optimizer_state_dict(task, optimizer, options=_WHOLE)
        groups = whole.get("param_groups", [])  # whole on the first rank, empty on the others
        by_name: Any = whole.get("state", {})
    else:
        names = {id(p): name for name, p in task.named_parameters()}
        groups = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in optimizer.param_groups]
        by_name = {names[id(p)]: values for p, values in optimizer.state.items()}
    flat = {
        f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for name, values in by_name.items()
        for key, value in values.items()
        if value is not None
    }
    tensors: dict[str, dict[str, Tensor]] = {"model": model, "optim": flat}
    if ema is not None:
        tensors["ema"] = _module_state(ema.module, sharded)
    plain = [{k: list(v) if isinstance(v, tuple) else v for k, v in g.items() if _plain(v)} for g in groups]
    return tensors, plain


def _module_state(module: nn.Module, sharded: bool) -> dict[str, Tensor]:
    """A module's tensors, whole; empty on ranks other than the first where they lie in shards."""
    whole: Any = get_model_state_dict(module, options=_WHOLE) if sharded else module.state_dict()
    return whole


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple)


def restore(task: nn.Module, optimizer: Optimizer, ema: EMA | None, saved: Checkpoint, sharded: bool) -> None:
    """Put a captured state back. UserError where it does not belong to this task."""
    model: Any = saved.tensors["model"]
    flat = saved.tensors["optim"]
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in flat.items():
        name, _, key = path.rpartition("/")
        by_name.setdefault(name, {})[key] = value
    try:
        parts = [(task, model)] if ema is None else [(task, model), (ema.module, saved.tensors["ema"])]
        for module, tensors in parts:
            if sharded:
                set_model_state_dict(module, tensors, options=_SPREAD)
            else:
                module.load_state_dict(tensors)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"the checkpoint does not fit this task: {str(error).splitlines()[0]}") from error
    groups = saved.meta["groups"]
    if len(groups) != len(optimizer.param_groups):
        raise UserError("the checkpoint does not fit this task: its weights are in other groups, of another version")
    if sharded:
        whole = {"state": by_name, "param_groups": groups}
        set_optimizer_state_dict(task, optimizer, whole, options=_SOME)
        for name, parameter in task.named_parameters():
            if name not in by_name:
                optimizer.state.pop(parameter, None)  # what torch made up for it
        return
    parameters = dict(task.named_parameters())
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update({k: tuple(v) if k == "betas" else v for k, v in settings.items() if k != "params"})
    fused = bool(optimizer.defaults.get("fused"))
    for name, values in by_name.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {k: _like(v, parameter, fused) for k, v in values.items()}


def _like(value: Tensor, parameter: nn.Parameter, fused: bool) -> Tensor:
    """On the parameter's device and, for what has its shape, in its memory order: fused kernels walk both in step."""
    if value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device) if fused else value.clone()  # fused kernels count their steps on the device


class Served(nn.Module):
    """What a run's bundle keeps of a task, under the task's names: its encoder, and the heads that fit that encoder."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        for part in ("encoder", *getattr(task, "kept", {}).values()):
            setattr(self, part, getattr(task, part))


def part_tensors(task: Any, part: str, ema: EMA | None, sharded: bool) -> dict[str, Tensor]:
    """The state of one of a task's modules, whole: the averaged one where there is one. Every rank must call it."""
    whole: Any = task if ema is None else ema.module
    if not sharded:
        return getattr(whole, part).state_dict()
    return {n.removeprefix(f"{part}."): t for n, t in _module_state(whole, True).items() if n.startswith(f"{part}.")}
