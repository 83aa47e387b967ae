"""The one training loop, for pretraining and fine-tuning: it sees an nn.Module, Steps, and nothing of their kind."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from selftaught import disk, rng
from selftaught.batch import Batch, Step
from selftaught.ema import EMA
from selftaught.errors import RunStopped
from selftaught.ranks import whole
from selftaught.train import checkpoint, distributed, state
from selftaught.train.board import mirrored
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.folder import RunFolder
from selftaught.train.optim import build_optimizer, lr_at, set_lr
from selftaught.train.order import Order, batches
from selftaught.train.progress import Meter

# How other errors say it: torch's allocator for CPUs, the CUDA runtime (pinned memory, too), cuBLAS.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_MODULES = 2  # key of the generator that dropout and stochastic depth draw from


@runtime_checkable
class Task(Protocol):
    """What the loop trains: a Pretext or a Downstream."""

    encoder: nn.Module
    splits_batch: bool

    def __call__(self, batch: Batch) -> Step: ...

    def before_step(self, progress: float) -> None: ...

    def after_step(self, progress: float) -> None: ...


@runtime_checkable
class Watcher(Protocol):
    """Looks at the task every `every` steps; returns a note for the progress line, or None."""

    every: int

    def look(self, task: Any, step: int, run: RunFolder, meter: Meter) -> str | None: ...


@dataclass(frozen=True)
class Outcome:
    """steps done, whether the run was stopped by a signal (its number) before its end, and its speed."""

    steps: int
    stopped_by: int | None
    seconds: float
    samples_per_second: float


class Stop:
    """SIGTERM and Ctrl-C set a flag; the step under way is finished and saved. A second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __enter__(self) -> "Stop":
        with contextlib.suppress(ValueError):  # not in the main thread: the caller's own handlers stay
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Trainer:
    """State of a run: task, optimiser, averaged weights, and the step it is at."""

    def __init__(
        self, task: nn.Module, config: TrainConfig, ranks: Ranks, layer_of: Callable[[str], int] | None = None
    ) -> None:
        self.config, self.ranks = config, ranks
        self.device = torch.device(config.device, ranks.local) if config.device == "cuda" else torch.device("cpu")
        self.task: Any = cast(Any, task)
        self.task.train().to(self.device)  # a loaded encoder comes in evaluation mode
        self.sharded = config.strategy == "fsdp" and ranks.world > 1
        if not self.sharded:  # FSDP2 takes parameters in their plain order only
            self.task.to(memory_format=torch.channels_last)  # convolutions then run a third faster
        self.ema = EMA(state.Served(self.task), config.ema) if config.ema is not None else None
        if config.compile:
            self.task.encoder.compile()
        self.model = distributed.share(self.task, config.strategy, ranks, self.device)
        if self.sharded and self.ema is not None:
            distributed.share(self.ema.module, config.strategy, ranks, self.device)
        self.optimizer = build_optimizer(self.task, config.optim, self.device, layer_of)
        self.step = 0

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step on this rank's part of a batch: its figures, averaged over ranks.

        Raises RunStopped on every rank if the loss or the gradient of any is not finite; weights are then untouched.
        """
        config = self.config
        self._seed(rng.fold(config.seed, _MODULES, self.step, self.ranks.rank) >> 1)
        lr = lr_at(self.step, config.steps, config.optim)
        set_lr(self.optimizer, lr, constant_lr=lr_at(self.step, config.steps, replace(config.optim, min_lr_ratio=1.0)))
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part in _micro_batches(batch, config.accumulate):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss, metrics = self.model(part.to(self.device))
            (loss / config.accumulate).backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals.get(name, 0) + value.float() / config.accumulate
        self.task.before_step(self.step / config.steps)
        parameters = [p for p in self.task.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])
        if config.optim.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, config.optim.clip_norm, norm)
        totals["grad_norm"] = _whole(norm)
        values = torch.stack([t.to(self.device, torch.float64) for t in totals.values()])  # read at once: reading waits
        figures = dict(zip(totals, values.tolist(), strict=True))
        finite = np.isfinite(figures["loss"]) and np.isfinite(figures["grad_norm"])
        if distributed.agree(not finite, self.device):
            samples = distributed.gather(batch.index, self.device).tolist()
            raise NotFinite(figures["loss"], figures["grad_norm"], self.step, samples)
        self.optimizer.step()
        self.step += 1
        self.task.after_step(self.step / config.steps)
        if self.ema is not None:
            self.ema.update(state.Served(self.task))
        return {**distributed.mean(figures, self.device), "lr": lr}

    def _seed(self, seed: int) -> None:
        """Seed what dropout draws from, and no more: seeding all that there is takes a millisecond."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """The task in evaluation mode, without gradients, its parameters whole; as it was afterwards."""
        if self.sharded:
            distributed.follow_first(self.task)
        self.task.eval()
        # A compiler would make one graph of what is measured and what is trained on, and another one after a resume.
        as_it_is = torch.compiler.set_stance("force_eager") if self.config.compile else contextlib.nullcontext()
        try:
            with as_it_is, whole(self.task), torch.no_grad(), torch.random.fork_rng(devices=[]):
                yield
        finally:
            self.task.train()

    def mean(self, value: float) -> float:
        """The mean of a figure over the ranks."""
        return distributed.mean({"value": value}, self.device)["value"]

    def save(self, run: RunFolder, protect: int | None = None) -> None:
        """Write a checkpoint of the whole state; called on every rank, written by the first."""
        tensors, groups = state.capture(self.task, self.optimizer, self.ema, self.sharded)
        if run.writes:
            meta = {"groups": groups, "logs": run.log_sizes()}
            checkpoint.save(run.checkpoints, checkpoint.Checkpoint(self.step, tensors, meta), self.config.keep, protect)

    def restore(self, saved: checkpoint.Checkpoint, run: RunFolder) -> None:
        """Take up the state of a checkpoint, logs included."""
        state.restore(self.task, self.optimizer, self.ema, saved, self.sharded)
        run.cut_logs(saved.meta["logs"])
        self.step = saved.step


class NotFinite(RunStopped):
    """A loss or gradient that is NaN or infinite, and the samples of its batch, of all ranks."""

    def __init__(self, loss: float, norm: float, step: int, samples: list[int]) -> None:
        what = f"loss is {loss}" if not np.isfinite(loss) else f"gradient norm is {norm}"
        super().__init__(
            f"{what} at step {step}; stopped before the weights changed. "
            "Lower the learning rate (--lr) or set --set optim.clip_norm=1; the batch's samples are in not_finite.json"
        )
        self.report = {"step": step, "loss": str(loss), "grad_norm": str(norm), "samples": samples}


def _whole(norm: Tensor) -> Tensor:
    """The norm as an ordinary tensor; under FSDP2 it is one that lies in shards."""
    from torch.distributed.tensor import DTensor

    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    if parts == 1:
        yield batch
        return
    size = len(batch) // parts  # TrainConfig sees to it that nothing is left
    for rows in (slice(start, start + size) for start in range(0, len(batch), size)):
        inputs = {name: x[rows] for name, x in batch.inputs.items()}
        labels = None if batch.labels is None else batch.labels[rows]
        yield Batch(inputs, batch.index[rows], batch.seed, batch.step, labels)


def fit(
    trainer: Trainer,
    fetch: Callable[[np.ndarray, int], Batch],
    order: Order,
    run: RunFolder,
    watchers: Sequence[Watcher] = (),
    quiet: bool = False,
    what: str = "train",
) -> Outcome:
    """Train from where `trainer` stands to the end of its config; every state change is in the run folder.

    fetch(positions, step) -> Batch on the CPU. A watcher looks before the first step and every `every` steps.
    """
    config, first = trainer.config, trainer.step
    start, saved = time.monotonic(), first or None
    best: int | None = None
    board = mirrored(run, first) if config.tensorboard else contextlib.nullcontext()
    with Stop() as stop, board, Meter(what, config.steps, first, quiet or not trainer.ranks.first) as meter:
        try:
            if first == 0:
                _look(watchers, trainer, run, meter)
            for batch in batches(fetch, order, first, config.steps, config.workers, trainer.device):
                figures = trainer.train_step(batch)
                run.append("log.jsonl", {"step": trainer.step, **figures})
                done, now = trainer.step, time.monotonic()
                note = _look(watchers, trainer, run, meter)
                pace = (done - first) * config.batch / (now - start)
                meter.update(done, f"loss {figures['loss']:.3f}  {pace:.0f} samples/s{note}")
                halt = distributed.agree(stop.signal is not None, trainer.device)
                if done % config.save_every == 0 or halt or done == config.steps:
                    best = _best(run, {*checkpoint.steps(run.checkpoints), done})
                    trainer.save(run, protect=best)
                    saved = done
                    run.append("timing.jsonl", {"step": done, "seconds": round(now - start, 3)})
                if halt:
                    break
        except NotFinite as error:
            if run.writes:
                disk.write_json(run.path / "not_finite.json", error.report)
            raise
        except (RuntimeError, MemoryError) as error:
            raise out_of_memory(error, config, trainer.task, saved) or error from error
    seconds = time.monotonic() - start
    pace = (trainer.step - first) * config.batch / max(seconds, 1e-9)
    # The signal may have reached another rank alone: every rank stopped with it.
    return Outcome(
        trainer.step, (stop.signal or signal.SIGTERM) if trainer.step < config.steps else None, seconds, pace
    )


def _look(watchers: Sequence[Watcher], trainer: Trainer, run: RunFolder, meter: Meter) -> str:
    notes = []
    for watcher in watchers:
        if trainer.step % watcher.every == 0 or trainer.step == trainer.config.steps:
            notes.append(watcher.look(trainer, trainer.step, run, meter))
    return "".join(f"  {note}" for note in notes if note)


def _best(run: RunFolder, saved: set[int]) -> int | None:
    """Which of the saved steps has the lowest held-out loss; it needs no labels."""
    rows = [r for r in run.rows("health.jsonl") if r.get("held_out_loss") is not None and r["step"] in saved]
    return min(rows, key=lambda r: (r["held_out_loss"], r["step"]))["step"] if rows else None


def out_of_memory(error: Exception, config: TrainConfig, task: Any, saved: int | None = None) -> RunStopped | None:
    """The one-line error for memory that ran out, or None if `error` is something else."""
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(
        said in str(error) for said in _NO_MEMORY
    ):
        return None
    remedy = f"--batch {max(1, config.batch // 2)}"
    if task.splits_batch:
        normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.modules())
        what = "BatchNorm then sees half as many samples" if normed else "the same gradient in half the memory"
        remedy += f" or --set train.accumulate={config.accumulate * 2} ({what})"
    else:
        remedy += " (smaller micro-batches would change this task's loss)"
    kept = "Nothing was saved yet" if saved is None else f"The checkpoint of step {saved} is whole"
    return RunStopped(f"out of memory at batch {config.batch}; use {remedy}. {kept}")
