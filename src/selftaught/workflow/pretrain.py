"""pretrain: unlabelled data -> pretext task -> an encoder bundle in a run folder."""

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
from typing import Any

import numpy as np
import torch

from selftaught import bundle, disk, rng
from selftaught.data import Source, holdout
from selftaught.data.cache import show_bytes
from selftaught.data.images import ImageSource
from selftaught.encoders import EncoderConfig, build, choose, named
from selftaught.errors import RunStopped, UserError
from selftaught.evaluation.monitor import HealthMonitor
from selftaught.modality.base import Modality
from selftaught.pretext import Pretext, find
from selftaught.recipe import Recipe
from selftaught.settings import digest, from_json, load_json, merged, sections, to_json
from selftaught.train import checkpoint, distributed, state
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.folder import RunFolder
from selftaught.train.loop import NotFinite, Outcome, Trainer, fit, out_of_memory
from selftaught.train.optim import OptimConfig
from selftaught.train.order import Order
from selftaught.train.progress import clock
from selftaught.workflow.prepare import (
    fetcher,
    fit_modality,
    name_of,
    open_source,
    pick_device,
    pick_precision,
    pick_size,
    pick_threads,
    positive,
    say,
)

_HEADS = 3  # key of the heads' initial weights
_DEFAULT_MINUTES = 10.0
_LEAST_SIZE = 8
# What --set may not say, because an option or the data says it.
_SAID_ELSEWHERE = {
    "train": {n: f"--{n}" for n in ("steps", "batch", "seed", "device")} | {"world": "torchrun", "optim": "optim.NAME"},
    "encoder": {"name": "--encoder", "size": "--size", "weights": "--weights", "channels": "the data"},
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


class Interrupted(RunStopped):
    """A run that a signal stopped, everything saved."""

    def __init__(self, number: int, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}, saved; type the same command to go on")
        self.exit_code = 128 + number


def build_task(recipe: Recipe, modality: Modality) -> Pretext:
    """The task of a recipe with its initial weights, which are a function of the seed alone."""
    kind = find(recipe.pretext)
    config: Any = from_json(kind.Config, recipe.pretext_config, "pretext")
    encoder = build(recipe.encoder, rng.fold(recipe.train.seed) >> 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.fold(recipe.train.seed, _HEADS) >> 1)
        return kind(encoder, modality, config)


def pretrain(request: Request, data: Any, out: Path | None, quiet: bool = False) -> Path:
    """Run (or resume, or find finished) the pretraining that was asked for; returns its run folder."""
    _check(request)
    path = out or Path("runs") / f"{name_of(data)}-{Path(request.pretext.partition('.py')[0]).name}"
    # Before the ranks meet: what one of them writes later must not look like an older run to another.
    resumed = RunFolder(path, writes=False).claim(to_json(request))
    said = path / "recipe.json" if resumed and (path / "recipe.json").is_file() else request.recipe
    recipe = None if said is None else from_json(Recipe, load_json(Path(said)), "recipe")
    device = pick_device(request.device if recipe is None else recipe.train.device)
    torch.set_num_threads(pick_threads())
    ranks = distributed.join(device)
    run = RunFolder(path, writes=ranks.first)
    tell: Callable[[str], None] = (lambda line: None) if quiet or not ranks.first else say
    if resumed and (run.encoder / "config.json").is_file():
        tell(f"run '{path}' is complete; nothing to do. Another --out or --seed starts a new one")
        return path
    source = _open(data, _limit(request, device) if recipe is None else recipe.limit, ranks, quiet)
    train, held = holdout(source, request.holdout if recipe is None else recipe.holdout)
    if recipe is None:
        recipe = resolve(request, source, train, device, ranks, tell)
    else:
        _same_circumstances(recipe, source, ranks)
    torch.set_num_threads(recipe.train.threads)
    modality = bundle.modality_from_json(recipe.kind, recipe.modality)
    if ranks.first:
        run.begin(to_json(request))
        disk.write_json(run.path / "recipe.json", to_json(recipe))
        disk.write_json(run.path / "data.json", _data_facts(source, train, held))
        with disk.filling(run.path):
            np.save(run.path / "seen.npy", source.hashes[train])
    outcome = _train(recipe, source, modality, train, held, run, ranks, tell, quiet)
    distributed.leave()
    if outcome.stopped_by is not None:
        raise Interrupted(outcome.stopped_by, outcome.steps, recipe.train.steps)
    return path


def _check(request: Request) -> None:
    """Refuse what no data could make right, before any data is read."""
    if request.recipe is not None:
        said = [f.name for f in dataclasses.fields(Request) if f.name not in ("data", "device", "recipe")]
        plain = Request(request.data)
        if more := [n for n in said if getattr(request, n) != getattr(plain, n)]:
            raise UserError(f"--recipe says all about a run; leave out --{more[0].replace('settings', 'set')}")
    budgets = {n: getattr(request, n) for n in ("steps", "epochs", "minutes")}
    given = [n for n, value in budgets.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} are both given; a run has one budget, give one")
    positive(**budgets, batch=request.batch, lr=request.lr)
    if request.size is not None and request.size < _LEAST_SIZE:
        raise UserError(f"--size {request.size} is below {_LEAST_SIZE} pixels; use --size {_LEAST_SIZE} or more")
    if not 0 < request.holdout < 1:
        raise UserError(f"--holdout {request.holdout:g} is not between 0 and 1; use for example 0.1")
    changes = _changes(request)
    kind = find(request.pretext)
    from_json(kind.Config, changes.get("pretext", {}), "pretext")
    from_json(OptimConfig, changes.get("optim", {}), "optim")


def _changes(request: Request) -> dict[str, dict[str, Any]]:
    """The settings by section."""
    changes = sections(request.settings, ("pretext", "optim", "train", "encoder"))
    for section, values in changes.items():
        for name in values:
            if where := _SAID_ELSEWHERE.get(section, {}).get(name):
                raise UserError(f"setting '{section}.{name}' is given by {where}; leave it out of --set")
    return changes


def _limit(request: Request, device: str) -> int:
    """Training size that the stored pictures must allow: the one asked for, or the largest that is chosen by itself."""
    return request.size or (96 if device == "cpu" else 224)


def _open(data: Any, limit: int, ranks: Ranks, quiet: bool) -> ImageSource:
    """Open the data; one rank prepares the cache, the others then find it."""
    if ranks.world > 1 and not ranks.first:
        torch.distributed.barrier()
    source = open_source(data, limit, quiet or not ranks.first)
    if ranks.world > 1 and ranks.first:
        torch.distributed.barrier()
    return source


def _same_circumstances(recipe: Recipe, source: Source, ranks: Ranks) -> None:
    if recipe.data_hash != source.fingerprint:
        raise UserError(
            f"the data changed since the run began (hash {recipe.data_hash[:12]}, now {source.fingerprint[:12]}); "
            "restore it, or use another --out"
        )
    if recipe.train.world != ranks.world:
        raise UserError(
            f"the run began with {recipe.train.world} ranks and there are {ranks.world}; start it as before"
        )


def resolve(
    request: Request, source: ImageSource, train: np.ndarray, device: str, ranks: Ranks, tell: Callable[[str], None]
) -> Recipe:
    """Turn a request into a complete recipe: every automatic choice made, the budget in steps."""
    kind, changes = find(request.pretext), _changes(request)
    size = request.size or pick_size(source, device)
    name = choose(size, device, kind.needs) if request.encoder == "auto" else request.encoder
    encoder = named(name, size, source.channels)
    if request.weights is not None:
        if encoder.weights is not None:
            raise UserError(f"--weights and --encoder {name} both name weights; give one")
        encoder = dataclasses.replace(encoder, weights=request.weights)
    encoder = from_json(EncoderConfig, {**to_json(encoder), **changes.get("encoder", {})}, "encoder")
    small = kind.small_machine if device == "cpu" else {}
    if small:
        tell(f"no GPU: {request.pretext} starts from its small-machine preset {json.dumps(small)}; --set changes it")
    batch = request.batch or _pick_batch(len(train), ranks.world, 128 if device == "cpu" else 256)
    # Few steps on a small convolutional network bear, and need, a larger step than long runs of large ones.
    base = 2.8e-3 if device == "cpu" and "keep" not in kind.needs else 1e-3
    optim = {"lr": request.lr or base * (batch / 256) ** 0.5, **changes.get("optim", {})}
    loop = {
        "steps": 1,
        "batch": batch,
        "seed": request.seed,
        "precision": pick_precision(device, encoder),
        "threads": torch.get_num_threads(),
        "world": ranks.world,
        "device": device,
        "optim": optim,
    }
    recipe = Recipe(
        data=request.data,
        data_hash=source.fingerprint,
        holdout=request.holdout,
        limit=_limit(request, device),
        kind="image",
        modality=fit_modality(source, size, train).to_json(),
        pretext=request.pretext,
        pretext_config=to_json(from_json(kind.Config, merged(small, changes.get("pretext", {})), "pretext")),
        encoder=encoder,
        train=from_json(TrainConfig, {**loop, **changes.get("train", {})}, "train"),
    )
    return _budget(request, recipe, source, train, ranks, tell)


def _pick_batch(n: int, world: int, largest: int) -> int:
    """`largest`, or the largest power of two that still makes four steps an epoch, divisible by the ranks."""
    batch = largest
    while batch > 8 and batch * 4 > n:
        batch //= 2
    return max(world, min(batch, n) // world * world)


def _budget(
    request: Request, recipe: Recipe, source: ImageSource, train: np.ndarray, ranks: Ranks, tell: Callable[[str], None]
) -> Recipe:
    """Fix the number of steps. A budget in minutes is turned into steps by a few real steps, then thrown away."""
    loop = recipe.train
    per_epoch = Order(len(train), loop.batch, loop.seed, ranks.rank, ranks.world).steps_per_epoch
    steps = request.steps
    if request.epochs is not None:
        steps = max(1, round(request.epochs * per_epoch))
    seconds, memory = measure(recipe, source, train, ranks) if steps is None or steps > 100 else (None, None)
    if steps is None:
        assert seconds is not None
        minutes = request.minutes if request.minutes is not None else _DEFAULT_MINUTES
        if request.minutes is None:
            tell(f"no budget given: {minutes:g} minutes (--minutes, --epochs or --steps give another)")
        steps = max(1, int(minutes * 60 / (seconds * 1.05)))  # 5 % for measures and checkpoints
    every = 25 if steps <= 2000 else 50
    pace = 60 / seconds if seconds else 100
    save = max(every, round(min(pace, max(steps / 4, 1)) / every) * every)
    fixed = dataclasses.replace(loop, steps=steps, health_every=every, save_every=save)
    chosen = _changes(request).get("train", {})
    recipe = dataclasses.replace(recipe, train=from_json(TrainConfig, {**to_json(fixed), **chosen}, "train"))
    task = build_task(recipe, bundle.modality_from_json(recipe.kind, recipe.modality))  # refused before the run begins
    parameters = sum(p.numel() for p in task.encoder.parameters())
    plan = (
        f"plan: {recipe.pretext} on {recipe.encoder.name} ({parameters / 1e6:.1f} M parameters), {len(train)} samples of "
        f"{recipe.encoder.size} px, batch {loop.batch}, {steps} steps ({steps / per_epoch:.1f} epochs), {loop.precision}"
    )
    if seconds and memory:
        plan += f"; about {clock(seconds * 1.05 * steps)}, {show_bytes(round(memory))} of memory"
    tell(plan + f", {show_bytes(disk_bytes(task, loop))} of disk")
    return recipe


def disk_bytes(task: Pretext, loop: TrainConfig) -> int:
    """What a run's checkpoints take at most: weights, two moments and an average of each, in float32.

    There are the last ones, the best one, and the one that is being written.
    """
    return sum(p.numel() for p in task.parameters() if p.requires_grad) * 16 * (loop.keep + 2)


def measure(recipe: Recipe, source: Source, train: np.ndarray, ranks: Ranks) -> tuple[float, float]:
    """(seconds a step, bytes at the peak) of a few real steps on a copy of the task; nothing of them remains."""
    with contextlib.suppress(OSError):  # Linux: the peak is this measure's, not that of an earlier one
        Path("/proc/self/clear_refs").write_text("5")
    loop = dataclasses.replace(recipe.train, steps=1000)
    modality = bundle.modality_from_json(recipe.kind, recipe.modality)
    trainer = Trainer(build_task(recipe, modality), loop, ranks)
    order = Order(len(train), loop.batch, loop.seed, ranks.rank, ranks.world)
    fetch = fetcher(source, train, loop.seed, labels=trainer.task.supervised)
    times: list[float] = []
    begun = time.monotonic()
    for step in range(min(12, order.steps_per_epoch * 4)):
        start = time.monotonic()
        try:
            trainer.train_step(fetch(order.of_step(step), step))
        except NotFinite:  # the run itself will meet it, and say and keep what it is
            pass
        except (RuntimeError, MemoryError) as error:
            raise out_of_memory(error, loop, trainer.task) or error from error
        times.append(time.monotonic() - start)
        if len(times) >= 4 and time.monotonic() - begun > 6:
            break
    seconds = statistics.median(times[2:] or times)
    if trainer.device.type == "cuda":
        memory = float(torch.cuda.max_memory_allocated())
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        memory = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
    if ranks.world > 1:
        both = torch.tensor([seconds, memory], dtype=torch.float64, device=trainer.device)
        torch.distributed.broadcast(both, 0)
        seconds, memory = both.tolist()
    return seconds, memory


def _data_facts(source: ImageSource, train: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    sizes = source.sizes
    return {
        "count": len(source),
        "train": len(train),
        "held_out": len(held),
        "channels": source.channels,
        "smallest": sizes.min(axis=0).tolist(),
        "largest": sizes.max(axis=0).tolist(),
        "classes": source.classes,
        "fingerprint": source.fingerprint,
        "skipped": [{"name": s.name, "reason": s.reason} for s in source.skipped],
    }


def _train(
    recipe: Recipe,
    source: Source,
    modality: Modality,
    train: np.ndarray,
    held: np.ndarray,
    run: RunFolder,
    ranks: Ranks,
    tell: Callable[[str], None],
    quiet: bool,
) -> Outcome:
    """The loop itself, from the last checkpoint if there is one; ends with the bundle in its place."""
    loop = recipe.train
    task = build_task(recipe, modality)
    trainer = Trainer(task, loop, ranks)
    checkpoint.clean(run.checkpoints) if ranks.first else None
    saved, passed = checkpoint.load_last(run.checkpoints)
    for line in passed:
        tell(f"passed over: {line}")
    if not distributed.same(0 if saved is None else saved.step, trainer.device):
        raise UserError(
            f"the ranks see different checkpoints in '{run.path}'; it must lie on a disk that all nodes share"
        )
    if saved is not None:
        trainer.restore(saved, run)
        tell(f"resuming '{run.path}' at step {saved.step} of {loop.steps}")
    else:
        run.cut_logs({})
    order = Order(len(train), loop.batch, loop.seed, ranks.rank, ranks.world)
    fetch = fetcher(source, train, loop.seed, labels=task.supervised)
    watch = HealthMonitor(source, train, held, loop.seed, loop.health_every, loop.batch, task.chance(loop.batch))
    outcome = fit(trainer, fetch, order, run, [watch], quiet, what=recipe.pretext.rpartition(":")[2])
    if outcome.stopped_by is None:
        _finish(recipe, trainer, modality, source, run, outcome)
    return outcome


def _finish(
    recipe: Recipe, trainer: Trainer, modality: Modality, source: Source, run: RunFolder, outcome: Outcome
) -> None:
    tensors = state.encoder_tensors(trainer.task, trainer.ema, trainer.sharded)
    if not run.writes:
        return
    encoder = trainer.task.encoder
    info = {
        "pretext": recipe.pretext,
        "data": recipe.data,
        "data_hash": recipe.data_hash,
        "recipe_hash": digest(recipe),
        "steps": recipe.train.steps,
        "batch": recipe.train.batch,
        "seed": recipe.train.seed,
        "threads": recipe.train.threads,
        "world": recipe.train.world,
        "torch": torch.__version__,
    }
    summary = {
        "seconds": round(outcome.seconds, 1),
        "samples_per_second": round(outcome.samples_per_second, 1),
        "parameters": sum(p.numel() for p in build(encoder.config.bare()).parameters()),
        "device": recipe.train.device,
        "skipped": len(source.skipped),
    }
    disk.write_json(run.path / "summary.json", summary)
    bundle.save(run.encoder, encoder, modality, info, tensors)
