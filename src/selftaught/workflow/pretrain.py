"""pretrain: unlabelled data -> pretext task -> an encoder bundle in a run folder."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import bundle, disk
from selftaught.data import Source
from selftaught.encoders import build
from selftaught.errors import RunStopped, UserError, say
from selftaught.evaluation.guard import Guard
from selftaught.evaluation.monitor import HealthMonitor
from selftaught.modality.base import Modality
from selftaught.recipe import Recipe
from selftaught.settings import digest, from_json, load_json, to_json
from selftaught.train import checkpoint, distributed, state
from selftaught.train.distributed import Ranks
from selftaught.train.folder import RunFolder
from selftaught.train.loop import Outcome, Trainer, Watcher, fit
from selftaught.train.order import Order
from selftaught.workflow.evaluate import seen_hashes
from selftaught.workflow.general import guard_of, opened
from selftaught.workflow.kinds import kind_called
from selftaught.workflow.outcome import write_outcome
from selftaught.workflow.plan import Request, Resolved, build_task, check, limit_of, resolve
from selftaught.workflow.prepare import fetcher, name_of, open_source, pick_device, pick_threads


class Interrupted(RunStopped):
    """A run that a signal stopped, everything saved."""

    def __init__(self, number: int, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}, saved; type the same command to go on")
        self.exit_code = 128 + number


def pretrain(request: Request, data: Any, out: Path | None, quiet: bool = False, general: Any = None) -> Path:
    """Run (or resume, or find finished) the pretraining that was asked for; returns its run folder.

    general: what `request.general` describes.
    """
    check(request)
    path = out or _folder(request, data)
    claimed = to_json(request)
    if request.recipe is not None:  # a file of that name that says something else is another request
        claimed["recipe_hash"] = digest(_read(Path(request.recipe)))
    # Before the ranks meet: what one of them writes later must not look like an older run to another.
    resumed = RunFolder(path, writes=False).claim(claimed)
    said = path / "recipe.json" if resumed and (path / "recipe.json").is_file() else request.recipe
    recipe = None if said is None else _read(Path(said))
    device = pick_device(request.device) if recipe is None else _device_of(recipe, Path(str(said)))
    torch.set_num_threads(pick_threads())
    ranks = distributed.join(device)
    run = RunFolder(path, writes=ranks.first)
    tell: Callable[[str], None] = (lambda line: None) if quiet or not ranks.first else say
    complete = resumed and bundle.is_there(run.encoder)
    limit = limit_of(request, device) if recipe is None else recipe.limit
    source = _open(data, limit, ranks, quiet or complete)
    named = opened(recipe, request.general, general)
    other = None if named is None else _open(named, limit, ranks, quiet or complete)
    if recipe is not None:
        _same_circumstances(recipe, source, other, ranks)
    if complete:
        tell(f"run '{path}' is complete; nothing to do. Another --out or --seed starts a new one")
        distributed.leave()
        return path
    split = _split(source, request.holdout if recipe is None else recipe.holdout)
    if recipe is None:
        resolved = resolve(request, source, split, device, ranks, tell, quiet)
        if other is not None:
            fixed = dataclasses.replace(resolved.recipe, general=request.general, general_hash=other.fingerprint)
            resolved = resolved._replace(recipe=fixed)
    else:
        assert said is not None
        modality = bundle.modality_from_json(recipe.kind, recipe.modality, Path(said).parent / bundle.PREPROCESSING)
        resolved = Resolved(
            recipe, modality, kind_called(recipe.kind).training(source, modality, *split, quiet or not ranks.first)
        )
    recipe = resolved.recipe
    seen = source.hashes[split[0]]
    guard = None if other is None else guard_of(recipe, other, seen, resolved.modality, resolved.training)
    seen = _with_earlier(seen, recipe, tell)
    torch.set_num_threads(recipe.train.threads)
    with run.locked():
        if ranks.first:
            run.begin(claimed)
            _describe(run.path, resolved, _data_facts(source, *split), seen)
        outcome = _train(resolved, guard, run, ranks, tell, quiet)
    distributed.leave()
    if outcome.stopped_by is not None:
        raise Interrupted(outcome.stopped_by, outcome.steps, recipe.train.steps)
    return path


def _describe(path: Path, resolved: Resolved, facts: dict[str, Any], seen: np.ndarray) -> None:
    """Write what a run is of."""
    with disk.filling(path):
        bundle.write_files(path, resolved.modality)  # before the recipe, which cannot be read without them
    disk.write_json(path / "recipe.json", to_json(resolved.recipe))
    disk.write_json(path / "data.json", facts)
    with disk.filling(path):
        np.save(path / "seen.npy", seen)


def _folder(request: Request, data: Any) -> Path:
    """runs/DATA-PRETEXT."""
    pretext = request.pretext if request.recipe is None else _read(Path(request.recipe)).pretext
    bare = re.sub(r"\.py(:\w*)?$", "", pretext)
    return Path("runs") / f"{name_of(data)}-{Path(bare).name}"


def _read(file: Path) -> Recipe:
    return from_json(Recipe, load_json(file), "recipe")


def _device_of(recipe: Recipe, file: Path) -> str:
    """Where a recipe runs: bits and speed depend on it, so that it is the recipe's."""
    try:
        return pick_device(recipe.train.device)
    except UserError:
        raise UserError(
            f"'{file}' is for device '{recipe.train.device}', which this machine has not; change train.device in a copy of it"
        ) from None


def _with_earlier(own: np.ndarray, recipe: Recipe, tell: Callable[[str], None]) -> np.ndarray:
    """Hashes of what a run's encoder learns from: its own samples, then those of the runs that its weights come from."""
    weights = recipe.encoder.weights_file
    if weights is None:
        return own
    earlier = seen_hashes(weights.parent)
    if recipe.encoder.bundled and len(earlier) == 0:
        tell(f"'{weights.parent}' has no seen.npy: what it was trained on is unknown, and evaluate may test on it")
    return np.concatenate([own, np.setdiff1d(earlier, own)])


def _open(data: Any, limit: int, ranks: Ranks, quiet: bool) -> Source:
    """Open the data; one rank prepares the cache, the others then find it."""
    return distributed.first_then_others(ranks, lambda: open_source(data, limit, quiet or not ranks.first))


def _same_circumstances(recipe: Recipe, source: Source, general: Source | None, ranks: Ranks) -> None:
    hashes = {"data": (recipe.data_hash, source.fingerprint)}
    if general is not None:
        hashes["general data"] = (str(recipe.general_hash), general.fingerprint)
    for name, (then, now) in hashes.items():
        if then != now:
            raise UserError(
                f"the {name} changed since the run began (hash {then[:12]}, now {now[:12]}); "
                "restore it, or use another --out"
            )
    if recipe.train.world != ranks.world:
        raise UserError(
            f"the run began with {recipe.train.world} ranks and there are {ranks.world}; start it as before"
        )


def _split(source: Source, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the samples that teach and of those that are held out; UserError where these are too few to measure on."""
    train, held = kind_called(source.kind).split(source, share)
    if len(held) < 2:
        raise UserError(
            f"--holdout {share:g} holds {len(held)} of these {len(source)} samples out, and health is measured on 2 at "
            f"least; use --holdout {min(0.5, max(2 * share, 4 / len(source))):.2g}, or more data"
        )
    return train, held


def _data_facts(source: Source, train: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    return {
        "kind": source.kind,
        "count": len(source),
        "train": len(train),
        "held_out": len(held),
        **kind_called(source.kind).facts(source),
        "classes": source.classes,
        "fingerprint": source.fingerprint,
        "skipped": [{"name": s.name, "reason": s.reason} for s in source.skipped],
    }


def _train(
    resolved: Resolved,
    guard: Guard | None,
    run: RunFolder,
    ranks: Ranks,
    tell: Callable[[str], None],
    quiet: bool,
) -> Outcome:
    """The loop itself, from the last checkpoint if there is one; ends with the bundle in its place."""
    recipe, modality, (source, train, held) = resolved
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
    each = loop.batch // loop.accumulate  # what a loss is taken over
    watch = HealthMonitor(source, train, held, loop.seed, loop.health_every, each, task.chance(each))
    watchers: list[Watcher] = [watch] if guard is None else [watch, guard]
    before = _timed(run.rows("timing.jsonl"))
    run.append("timing.jsonl", {"step": trainer.step, "seconds": 0.0})
    outcome = fit(trainer, fetch, order, run, watchers, quiet, what=recipe.pretext.rpartition(":")[2])
    if outcome.stopped_by is None:
        with disk.filling(run.path):
            write_outcome(trainer, modality, fetcher(source, held, loop.seed, labels=task.supervised), len(held), run)
        _finish(recipe, trainer, modality, source, run, _pace(before, outcome, loop.batch))
    return outcome


def _timed(rows: list[dict[str, Any]]) -> tuple[int, float]:
    """Steps and seconds of a run's earlier lives, each up to its last checkpoint: what a kill lost is in neither.

    rows: of timing.jsonl. A life begins with a row of 0 seconds; in folders of older versions its seconds just fall.
    """
    steps, seconds, step, at = 0, 0.0, 0, 0.0
    for row in rows:
        if row["seconds"] > 0:
            steps += row["step"] - step
            seconds += row["seconds"] - (at if row["seconds"] >= at else 0.0)
        step, at = row["step"], row["seconds"]
    return steps, seconds


def _pace(before: tuple[int, float], outcome: Outcome, batch: int) -> dict[str, float | None]:
    """Seconds of training over all lives of a run, and samples a second; None where a kill left no time of any step."""
    seconds = before[1] + outcome.seconds
    samples = before[0] * batch + outcome.samples_per_second * outcome.seconds
    if samples == 0:
        return {"seconds": None, "samples_per_second": None}
    return {"seconds": round(seconds, 1), "samples_per_second": round(samples / seconds, 1)}


def _finish(
    recipe: Recipe,
    trainer: Trainer,
    modality: Modality,
    source: Source,
    run: RunFolder,
    pace: dict[str, float | None],
) -> None:
    def tensors_of(part: str) -> dict[str, Tensor]:
        return state.part_tensors(trainer.task, part, trainer.ema, trainer.sharded)

    tensors = tensors_of("encoder")
    kept = {
        f"{name}.safetensors": {n: t.detach().cpu().contiguous() for n, t in tensors_of(part).items()}
        for name, part in trainer.task.kept.items()
    }
    if not run.writes:
        return
    encoder, facts = trainer.task.encoder, load_json(run.path / "data.json")
    info = {
        "pretext": recipe.pretext,
        "continues": trainer.task.continues,
        "data": recipe.data,
        "data_hash": recipe.data_hash,
        **({"log_hash": facts["log_hash"]} if "log_hash" in facts else {}),  # of a log whatever its table of items
        "recipe_hash": digest(recipe),
        "steps": recipe.train.steps,
        "batch": recipe.train.batch,
        "seed": recipe.train.seed,
        "threads": recipe.train.threads,
        "world": recipe.train.world,
        "torch": torch.__version__,
    }
    summary = {
        **pace,
        "parameters": sum(p.numel() for p in build(encoder.config.bare()).parameters()),
        "device": recipe.train.device,
        "skipped": len(source.skipped),
    }
    disk.write_json(run.path / "summary.json", summary)
    bundle.save(run.encoder, encoder, modality, info, tensors, kept)
