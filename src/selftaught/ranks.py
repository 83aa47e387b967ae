"""What losses ask of the other ranks: rows, sums and counts. Outside torch.distributed there is one rank."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """The parameters of a module whole, where FSDP2 keeps them in shards; what is written to them inside is lost then."""
    from torch.distributed.fsdp import FSDPModule

    shards = module if isinstance(module, FSDPModule) else None
    if shards is not None:
        shards.unshard()
    try:
        yield
    finally:
        if shards is not None:
            shards.reshard()


def place() -> tuple[int, int]:
    """Rank and world size; (0, 1) outside torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """Backward sums what every rank's loss asks of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        everyone = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
        dist.all_gather(list(everyone.split(len(x))), x.contiguous())
        return everyone

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """All ranks' rows [W n, ...] in the order of ranks, as many of each.

    A loss of all rows that every rank computes, or one of this rank's rows against all, has the gradient of the whole batch
    once gradients are averaged over ranks, as DistributedDataParallel does.
    """
    return _Gather.apply(x) if place()[1] > 1 else x


def summed(x: Tensor) -> Tensor:
    """The sum over ranks, without gradient."""
    x = x.detach().clone()
    if place()[1] > 1:
        dist.all_reduce(x)
    return x


def mean_count(target: Tensor) -> Tensor:
    """The mean number of targets of a rank, at least one: a sum over it is a mean over those of all ranks."""
    n = torch.full((), float(len(target)), device=target.device)  # torch.tensor would wait for the device
    return (summed(n) / place()[1]).clamp_min(1.0)
