"""Ranks under torchrun: nothing home-made, only the few calls that the loop needs."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
_PAUSE = 0.1  # seconds
_PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.rank == 0


def under_torchrun() -> bool:
    """Whether torchrun started several processes, of which this is one."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def join(device: str) -> Ranks:
    """Join the process group that torchrun set up, if any: gloo on CPU, NCCL on CUDA."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Ranks()
    local = int(os.environ["LOCAL_RANK"])
    if not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(local)
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), local)


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        # gloo's thread frees the last collective a moment after it is done and needs the interpreter's lock for it; destroying
        # the group waits for that thread and holds the lock (seen with torch 2.13 where a rank left within milliseconds).
        time.sleep(_PAUSE)
        dist.destroy_process_group()


def agree(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is true on any."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def same(value: int, device: torch.device) -> bool:
    """Whether every rank has the same value."""
    spread = mean({"value": float(value)}, device)["value"]
    return not agree(spread != value, device)


def _patient() -> Any:
    """A group of its own: the one that trains gives up after ten minutes, and preparing may take hours."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def first_then_others(ranks: Ranks, prepare: Callable[[], T]) -> T:
    """What `prepare` returns on each rank: the first one runs it alone, and the others find what it left on disk."""
    if ranks.world == 1:
        return prepare()
    waiting = _patient()
    if not ranks.first:
        dist.barrier(waiting)
    found = prepare()
    if ranks.first:
        dist.barrier(waiting)
    return found


def told_by_first(ranks: Ranks, make: Callable[[], str]) -> str:
    """What the first of several ranks makes, on every rank; however long that takes."""
    waiting = _patient()
    made = torch.frombuffer(bytearray(make().encode()), dtype=torch.uint8) if ranks.first else torch.empty(0)
    size = torch.tensor(len(made))
    dist.broadcast(size, 0, waiting)
    if not ranks.first:
        made = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(made, 0, waiting)
    return made.numpy().tobytes().decode()


def gather(values: Tensor, device: torch.device) -> Tensor:
    """The values [n] of every rank, rank after rank, [world * n]; all ranks have equally many."""
    if not dist.is_initialized():
        return values
    parts = [torch.empty_like(values, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.to(device))
    return torch.cat(parts).cpu()


def follow_first(module: nn.Module) -> None:
    """Give every rank the first one's buffers (BatchNorm statistics): what a checkpoint holds, and DDP does by itself."""
    for buffer in module.buffers():
        dist.broadcast(buffer, 0)


def mean(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Mean of each figure over the ranks."""
    if not dist.is_initialized():
        return values
    flat = torch.tensor(list(values.values()), device=device, dtype=torch.float64)
    dist.all_reduce(flat)
    return dict(zip(values, (flat / dist.get_world_size()).tolist(), strict=True))


def share(task: nn.Module, strategy: str, ranks: Ranks, device: torch.device) -> nn.Module:
    """Wrap a task for its ranks: DDP copies it, FSDP2 cuts its parameters into shards.

    On CUDA, BatchNorm takes its statistics over all ranks; PyTorch has no such layer for CPUs.
    """
    if ranks.world == 1:
        return task
    if device.type == "cuda":
        # torch's own would drop the activations that timm puts into its layers.
        from timm.layers import convert_sync_batchnorm

        task = convert_sync_batchnorm(task)
    if strategy == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(task)
        return task
    # By default buckets of gradients are laid out anew after the first step of a process, and sums over three ranks or more
    # depend on the layout to the last bit: a resumed run would differ. Looking for unused weights keeps the first layout.
    return DistributedDataParallel(
        task, device_ids=[device.index] if device.type == "cuda" else None, find_unused_parameters=True
    )
