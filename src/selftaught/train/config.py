"""The settings of the training loop."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from selftaught.errors import UserError
from selftaught.train.optim import OptimConfig


@dataclass(frozen=True)
class TrainConfig:
    """What the training loop needs to know, whatever it trains.

    steps: optimiser steps of the whole run. batch: samples per step over all ranks. accumulate: micro-batches a step.
    precision: "fp32" or "bf16" (autocast). strategy: how ranks share the model, "ddp" or "fsdp".
    ema: decay of an averaged copy of the encoder and of heads that are kept with it, then the result; None for none.
    save_every, keep: steps between checkpoints, how many of the last are kept. health_every: steps between measures.
    tensorboard: write the logs as TensorBoard's event files as well (needs selftaught[log]).
    threads: CPU threads a rank; part of the recipe because sums depend on it to the last bit.
    """

    steps: int
    batch: int
    seed: int = 0
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    ema: float | None = None
    compile: bool = False
    save_every: int = 200
    keep: int = 2
    health_every: int = 25
    tensorboard: bool = False
    workers: int = 1
    threads: int = 1
    world: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "keep", "health_every", "threads", "world"):
            if getattr(self, name) < 1:
                raise UserError(f"setting 'train.{name}' is {getattr(self, name)}; it must be at least 1")
        if self.workers < 0:
            raise UserError(f"setting 'train.workers' is {self.workers}; it must be 0 (no loader thread) or more")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UserError(f"setting 'train.ema' is {self.ema}; it must be in [0, 1), such as 0.99")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UserError("setting 'train.tensorboard' needs the package tensorboard: pip install 'selftaught[log]'")
        # Micro-batches of unequal size would not average to the gradient of the batch.
        if self.batch % (self.accumulate * self.world) and self.batch % self.world == 0:
            raise UserError(
                f"batch {self.batch} over {self.world} ranks is not divisible into {self.accumulate} micro-batches; "
                f"use a --batch that is a multiple of {self.accumulate * self.world}"
            )
