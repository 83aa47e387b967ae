"""The settings of the training loop."""

from dataclasses import dataclass, field

from selftaught.train.optim import OptimConfig


@dataclass(frozen=True)
class TrainConfig:
    """What the training loop needs to know, whatever it trains.

    steps: optimiser steps of the whole run. batch: samples per step over all ranks. accumulate: micro-batches a step.
    precision: "fp32" or "bf16" (autocast). strategy: how ranks share the model, "ddp" or "fsdp".
    ema: decay of an averaged copy of the encoder, which then is the result; None for none.
    save_every, keep: steps between checkpoints, how many of the last are kept. health_every: steps between measures.
    threads: CPU threads a rank; part of the recipe because sums depend on it to the last bit.
    """

    steps: int
    batch: int
    seed: int = 0
    accumulate: int = 1
    precision: str = "fp32"
    strategy: str = "ddp"
    ema: float | None = None
    compile: bool = False
    save_every: int = 200
    keep: int = 2
    health_every: int = 25
    workers: int = 1
    threads: int = 1
    world: int = 1
    device: str = "cpu"
    optim: OptimConfig = field(default_factory=OptimConfig)
