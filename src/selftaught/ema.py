"""Exponential moving average of a module's weights: averaged encoders, momentum encoders, teachers."""

import copy
import math
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn


class EMA(nn.Module):
    """A copy whose parameters follow `module` as decay·own + (1 - decay)·module; it takes no gradient.

    Buffers (BatchNorm statistics) are copied, not averaged: they are running averages already.
    runs: the copy itself runs in training, as targets and teachers do; its BatchNorm then has statistics of its own activations,
    which those of `module` are not to replace, and it drops nothing at random.
    """

    def __init__(self, module: nn.Module, decay: float, runs: bool = False) -> None:
        super().__init__()
        self.decay, self.runs = decay, runs
        self.module = copy.deepcopy(module).requires_grad_(False)
        for part in self.module.modules() if runs else ():
            if isinstance(part, DropPath):
                part.drop_prob = 0.0
            elif isinstance(part, nn.Dropout):
                part.p = 0.0

    def forward(self, *inputs: Any) -> Any:
        """What the copy makes of `inputs`."""
        return self.module(*inputs)

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float | None = None) -> None:
        """Follow `module` by one step."""
        weight = 1 - (self.decay if decay is None else decay)
        own: list[Tensor] = list(self.module.parameters())
        new: list[Tensor] = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(own, new, weight)
        if self.runs:
            return
        for mine, other in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(other)


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine: how momentum and weight decay are scheduled (BYOL, section 3.3).

    progress: share of the run that is done, in [0, 1].
    """
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2
