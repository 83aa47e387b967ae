"""From what a user asks for to a complete recipe, and what a run of it would cost on this machine."""

import contextlib
import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from selftaught import rng
from selftaught.bundle import modality_of
from selftaught.data import Source
from selftaught.data.asked import cut
from selftaught.data.cache import show_bytes
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError
from selftaught.memory import Queue
from selftaught.modality.base import Modality
from selftaught.pretext import Pretext, find
from selftaught.recipe import Recipe
from selftaught.settings import from_json, merged, sections, to_json
from selftaught.train import distributed
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks, agree
from selftaught.train.loop import NotFinite, Trainer, out_of_memory
from selftaught.train.optim import OptimConfig
from selftaught.train.order import LOADERS, Order, batches
from selftaught.train.progress import clock
from selftaught.workflow.kinds import KINDS, Kind, Training, kind_called
from selftaught.workflow.prepare import fetcher, pick_precision, positive, rate_of_its_own, said_once
from selftaught.workflow.start import size_of, start_of, take_heads

_HEADS = 3  # key of the heads' initial weights
_DEFAULT_MINUTES = 10.0
_LEAST_SIZE = 8
# Of the usual rate where weights are learned already: the usual one forgets most of them (docs/benchmarks.md).
_GENTLE = 0.1
# What --set may not say, because an option or the data says it.
_SAID_ELSEWHERE = {
    "train": {n: f"--{n}" for n in ("steps", "batch", "seed", "device")} | {"world": "torchrun", "optim": "optim.NAME"},
    "encoder": {
        "name": "--encoder",
        "size": "--size",
        "weights": "--weights",
        "channels": "the data",
        "vocabulary": "text.vocabulary",
        "bundled": "--encoder",
    },
}


@dataclass(frozen=True)
class Request:
    """What the user asked for; the run folder keeps it, and the same request again resumes."""

    data: str
    pretext: str = "simclr"
    encoder: str = "auto"
    weights: str | None = None
    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch: int | None = None
    lr: float | None = None
    size: int | None = None
    holdout: float = 0.1
    seed: int = 0
    device: str = "auto"
    settings: list[str] = field(default_factory=list)
    recipe: str | None = None
    general: str | None = None


def described(data: Any) -> str:
    """What a request calls its data: the whole path, or what kind of object it is."""
    if not isinstance(data, str | Path) or "://" in str(data):
        return type(data).__name__
    path, words = cut(str(data))
    return f"{path.resolve()}?{words}" if words else str(path.resolve())


def build_task(recipe: Recipe, modality: Modality) -> Pretext:
    """The task of a recipe with its initial weights, which are a function of the seed alone."""
    kind = find(recipe.pretext)
    config: Any = from_json(kind.Config, recipe.pretext_config, "pretext")
    encoder = build(recipe.encoder, rng.fold(recipe.train.seed) >> 1)
    if not recipe.encoder.bundled:  # one that has learned knows its items already, by words that it learned to read
        kind_called(recipe.kind).fill(encoder, modality)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.fold(recipe.train.seed, _HEADS) >> 1)
        task = kind(encoder, modality, config)
    take_heads(task, recipe.encoder)
    return task


def check(request: Request) -> None:
    """Refuse what no data could make right, before any data is read."""
    if request.recipe is not None:
        said = [f.name for f in dataclasses.fields(Request) if f.name not in ("data", "recipe")]
        plain = Request(request.data)
        if more := [n for n in said if getattr(request, n) != getattr(plain, n)]:
            raise UserError(f"--recipe says all about a run; leave out --{more[0].replace('settings', 'set')}")
    budgets = {n: getattr(request, n) for n in ("steps", "epochs", "minutes")}
    given = [n for n, value in budgets.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} are both given; a run has one budget, give one")
    positive(**budgets, batch=request.batch, lr=request.lr)
    if request.size is not None and request.size < _LEAST_SIZE:
        raise UserError(f"--size {request.size} is below {_LEAST_SIZE}; use --size {_LEAST_SIZE} or more")
    if not 0 < request.holdout < 1:
        raise UserError(f"--holdout {request.holdout:g} is not between 0 and 1; use for example 0.1")
    changes = _changes(request)
    kind = find(request.pretext)
    from_json(kind.Config, changes.get("pretext", {}), "pretext")
    from_json(OptimConfig, changes.get("optim", {}), "optim")


def _changes(request: Request) -> dict[str, dict[str, Any]]:
    """The settings by section."""
    changes = sections(request.settings, ("pretext", "optim", "train", "encoder", *KINDS))
    said_once(changes, _SAID_ELSEWHERE, request.lr)
    return changes


def limit_of(request: Request, device: str) -> int:
    """Training size that stored pictures must allow: the one asked for, or the largest that is chosen by itself."""
    return request.size or size_of(request.encoder) or (96 if device == "cpu" else 224)


class Resolved(NamedTuple):
    """A complete recipe, the preprocessing it describes, and what it trains on."""

    recipe: Recipe
    modality: Modality
    training: Training


def resolve(
    request: Request,
    source: Source,
    split: tuple[np.ndarray, np.ndarray],
    device: str,
    ranks: Ranks,
    tell: Callable[[str], None],
    quiet: bool = True,
) -> Resolved:
    """Turn a request into a complete recipe: every automatic choice made, the budget in steps.

    split: positions of the samples that teach and that are held out.
    """
    task, kind, changes = find(request.pretext), kind_called(source.kind), _changes(request)
    _check_data(request.pretext, task, source)
    for other in set(changes) & set(KINDS) - {kind.name}:
        raise UserError(f"setting '{other}.{next(iter(changes[other]))}' is for {other} data, and this is {kind.name}")
    modality, encoder = _begin(request, kind, source, split[0], device, task.needs, changes, ranks)
    if request.general is not None and encoder.weights is None:
        raise UserError(
            "--general guards what pretrained weights know, and this run begins with random ones; name weights with "
            "--encoder FOLDER or --weights FILE, or leave out --general"
        )
    training = kind.training(source, modality, *split, quiet)
    small = task.small_machine.get(kind.name, {}) if device == "cpu" else {}
    if small:
        tell(f"no GPU: {request.pretext} starts from its small-machine preset {json.dumps(small)}; --set changes it")
    batch = request.batch or _pick_batch(len(training.train), ranks.world, kind.largest_batch[device])
    rate = kind.base_lr(device, task.needs, encoder) * (batch / 256) ** 0.5
    optim = changes.get("optim", {})
    if encoder.weights is not None and request.lr is None and "lr" not in optim:
        rate *= _GENTLE
        tell(f"going on from learned weights at lr {rate:.2g}, a tenth of what fresh ones get; --lr changes it")
    rate_of_its_own({"lr": request.lr, **optim}, batch)
    optim = {"lr": request.lr or rate, **optim}
    loop = {
        "steps": 1,
        "batch": batch,
        "seed": request.seed,
        "precision": pick_precision(device, encoder),
        "workers": LOADERS[device],
        "threads": torch.get_num_threads(),
        "world": ranks.world,
        "device": device,
        "optim": optim,
    }
    recipe = Recipe(
        data=request.data,
        data_hash=source.fingerprint,
        holdout=request.holdout,
        limit=limit_of(request, device),
        kind=kind.name,
        modality=modality.to_json(),
        pretext=request.pretext,
        pretext_config=to_json(from_json(task.Config, merged(small, changes.get("pretext", {})), "pretext")),
        encoder=encoder,
        train=from_json(TrainConfig, {**loop, **changes.get("train", {})}, "train"),
    )
    return Resolved(_budget(request, recipe, modality, training, ranks, tell), modality, training)


def _check_data(name: str, task: type[Pretext], source: Source) -> None:
    if source.kind not in task.kinds:
        raise UserError(f"pretext '{name}' works on {', '.join(sorted(task.kinds))}, not on {source.kind}")
    if task.supervised and (source.labels is None or not (source.labels >= 0).any()):
        raise UserError(
            f"pretext '{name}' reads labels, and the data has none; use class folders or a column label, or another pretext, "
            "such as simclr"
        )


def _begin(
    request: Request,
    kind: Kind,
    source: Source,
    train: np.ndarray,
    device: str,
    needs: frozenset[str],
    changes: dict[str, dict[str, Any]],
    ranks: Ranks,
) -> tuple[Modality, EncoderConfig]:
    """Preprocessing and encoder: those of an earlier run that goes on, or made for the data and the machine."""
    settings = changes.get(kind.name, {})
    start = start_of(request.encoder, kind.name, request.size, settings)
    if start is None:
        size = request.size or kind.pick_size(source, device, needs)
        modality = _fitted(kind, ranks, lambda: kind.fit(source, size, train, settings, request.encoder))
        name = kind.choose(size, device, needs) if request.encoder == "auto" else request.encoder
        encoder = kind.encoder(name, size, source, modality)
    else:
        encoder, modality = start
    if request.weights is not None:
        if encoder.weights is not None:
            raise UserError(f"--weights and --encoder {request.encoder} both name weights; give one")
        encoder = dataclasses.replace(encoder, weights=request.weights)
    return modality, from_json(EncoderConfig, merged(to_json(encoder), changes.get("encoder", {})), "encoder")


def _fitted(kind: Kind, ranks: Ranks, fit: Callable[[], Modality]) -> Modality:
    """Preprocessing as the first rank fits it: a tokenizer that breaks ties by chance would be another one on each."""
    if ranks.world == 1:
        return fit()

    def made() -> str:
        modality = fit()
        return json.dumps({"settings": modality.to_json(), "files": modality.files()})

    found = json.loads(distributed.told_by_first(ranks, made))
    return modality_of(kind.name, found["settings"], found["files"])


def _pick_batch(n: int, world: int, largest: int) -> int:
    """`largest`, or the largest power of two that still makes four steps an epoch, divisible by the ranks."""
    batch = largest
    while batch > 8 and batch * 4 > n:
        batch //= 2
    return max(world, min(batch, n) // world * world)


def _budget(
    request: Request,
    recipe: Recipe,
    modality: Modality,
    training: Training,
    ranks: Ranks,
    tell: Callable[[str], None],
) -> Recipe:
    """Fix the number of steps. A budget in minutes is turned into steps by a few real steps, then thrown away."""
    loop = recipe.train
    train = training.train
    per_epoch = Order(len(train), loop.batch, loop.seed, ranks.rank, ranks.world).steps_per_epoch
    steps = request.steps
    if request.epochs is not None:
        steps = max(1, round(request.epochs * per_epoch))
    cost = measure(recipe, modality, training, ranks) if steps is None or steps > 100 else None
    if steps is None:
        assert cost is not None
        minutes = request.minutes if request.minutes is not None else _DEFAULT_MINUTES
        if request.minutes is None:
            tell(f"no budget given: {minutes:g} minutes (--minutes, --epochs or --steps give another)")
        steps = max(1, int(minutes * 60 / (cost.seconds * 1.05)))  # 5 % for measures and checkpoints
    every = 25 if steps <= 2000 else 50
    pace = 60 / cost.seconds if cost else 100
    save = max(every, round(min(pace, max(steps / 4, 1)) / every) * every)
    fixed = dataclasses.replace(loop, steps=steps, health_every=every, save_every=save)
    chosen = _changes(request).get("train", {})
    recipe = dataclasses.replace(recipe, train=from_json(TrainConfig, {**to_json(fixed), **chosen}, "train"))
    task = build_task(recipe, modality)  # refused before the run begins
    _check_loop(task, recipe.train, len(train), tell)
    parameters = sum(p.numel() for p in task.encoder.parameters())
    unit = kind_called(recipe.kind).unit
    plan = (
        f"plan: {recipe.pretext} on {recipe.encoder.name} ({parameters / 1e6:.1f} M parameters), {len(train)} samples of "
        f"{recipe.encoder.size} {unit}, batch {loop.batch}, {steps} steps ({steps / per_epoch:.1f} epochs), {loop.precision}"
    )
    if cost:
        plan += f"; about {clock(cost.seconds * 1.05 * steps)}, {show_bytes(round(cost.memory))} of memory"
    tell(plan + f", {show_bytes(disk_bytes(task, loop))} of disk")
    return recipe


def _check_loop(task: Pretext, loop: TrainConfig, samples: int, tell: Callable[[str], None]) -> None:
    """Say, or refuse, what the loop's settings and the number of samples would do to this task."""
    queue = getattr(task, "queue", None)
    if isinstance(queue, Queue) and 2 * len(queue.rows) > samples:
        tell(
            f"pretext.queue {len(queue.rows)} is more than half of the {samples} samples that teach, so a sample often meets "
            f"itself of an epoch ago in it; --set pretext.queue={max(loop.batch, samples // 10)} holds others alone"
        )
    if loop.accumulate > 1 and not task.splits_batch:
        tell(
            f"train.accumulate {loop.accumulate}: the loss of {task.name} is that of {loop.batch // loop.accumulate} samples "
            f"at a time, not of {loop.batch} together"
        )
    if loop.ema is not None and "graph_items" in task.needs:  # its tables are made from the last weights, not averaged
        raise UserError(
            f"setting 'train.ema' is {loop.ema}, and {task.name} serves by tables, not by weights; leave it out"
        )


def disk_bytes(task: Pretext, loop: TrainConfig) -> int:
    """What a run's checkpoints take at most: weights, two moments and an average of each, in float32.

    There are the last ones, the best one, and the one that is being written.
    """
    return sum(p.numel() for p in task.parameters() if p.requires_grad) * 16 * (loop.keep + 2)


class Cost(NamedTuple):
    """Seconds a step, bytes of memory at the peak, bytes of disk for checkpoints."""

    seconds: float
    memory: float
    disk: int


def measure(recipe: Recipe, modality: Modality, training: Training, ranks: Ranks) -> Cost:
    """The cost of a run, from a few real steps on a copy of the task; nothing of them remains."""
    with contextlib.suppress(OSError):  # Linux: the peak is this measure's, not that of an earlier one
        Path("/proc/self/clear_refs").write_text("5")
    loop = dataclasses.replace(recipe.train, steps=1000)
    source, train = training.source, training.train
    trainer = Trainer(build_task(recipe, modality), loop, ranks)
    if trainer.device.type == "cuda":  # not before: torch refuses while nothing is on the device
        torch.cuda.reset_peak_memory_stats(trainer.device)
    order = Order(len(train), loop.batch, loop.seed, ranks.rank, ranks.world)
    fetch = fetcher(source, train, loop.seed, labels=trainer.task.supervised)
    most = min(12, order.steps_per_epoch * 4)
    # Beside a card loading costs no time; a CPU's cores have both to do.
    workers = loop.workers if trainer.device.type == "cuda" else 0
    times: list[float] = []
    begun = time.monotonic()
    with contextlib.closing(batches(fetch, order, 0, most, workers, trainer.device)) as supply:
        while len(times) < most:
            start = time.monotonic()
            try:
                trainer.train_step(next(supply))
            except NotFinite:  # the run itself will meet it, and say and keep what it is
                pass
            except (RuntimeError, MemoryError) as error:
                raise out_of_memory(error, loop, trainer.task) or error from error
            times.append(time.monotonic() - start)
            # Clocks differ between ranks, and one that leaves alone would keep the others waiting for its gradients.
            if agree(len(times) >= 4 and time.monotonic() - begun > 6, trainer.device):
                break
    seconds = statistics.median(times[2:] or times)
    if trainer.device.type == "cuda":
        memory = float(torch.cuda.max_memory_allocated(trainer.device))
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        memory = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
    if ranks.world > 1:
        both = torch.tensor([seconds, memory], dtype=torch.float64, device=trainer.device)
        torch.distributed.broadcast(both, 0)
        seconds, memory = both.tolist()
    return Cost(seconds, memory, disk_bytes(trainer.task, loop))
