"""finetune: a downstream task from few labels, beside one trained from scratch on the same budget."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught import bundle, disk, rng
from selftaught.data import Source
from selftaught.downstream import Downstream, lora
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError, say
from selftaught.settings import differences, from_json, load_json, merged, sections, to_json
from selftaught.train import checkpoint, distributed
from selftaught.train.config import TrainConfig
from selftaught.train.folder import RunFolder
from selftaught.train.loop import Trainer, fit
from selftaught.train.optim import OptimConfig
from selftaught.train.order import LOADERS, Order
from selftaught.workflow.evaluate import home, seen_hashes
from selftaught.workflow.jobs import Job, job_called
from selftaught.workflow.prepare import (
    fetcher,
    label_budget,
    pick_device,
    pick_precision,
    pick_threads,
    positive,
    rate_of_its_own,
    said_once,
)
from selftaught.workflow.pretrain import Interrupted


@dataclass(frozen=True)
class Budget:
    """What a fine-tuning may cost, as `api.finetune` has it. settings: of `--set`."""

    mode: str
    labels: float
    epochs: float
    batch: int | None
    lr: float | None
    seed: int
    settings: tuple[str, ...] = ()


def finetune(
    run: Path,
    data: Any,
    test: Any,
    task: str,
    budget: Budget,
    scratch: bool,
    out: Path | None,
    device: str,
    quiet: bool,
) -> Path:
    """Fine-tune, test, and write finetune.json; returns the folder, which `predict` reads."""
    label_budget(budget.labels)
    positive(epochs=budget.epochs, batch=budget.batch, lr=budget.lr)
    if distributed.under_torchrun():
        raise UserError("finetune trains in one process; start it without torchrun")
    job, seed = job_called(task), budget.seed
    changes = sections(budget.settings, ("optim", "train", "task"))
    _check(changes, budget)
    settings = job.settings(budget.mode, changes.pop("task", {}))
    loaded = bundle.load(run)
    where = pick_device(device)
    torch.set_num_threads(pick_threads())
    path = out or home(run) / f"{job.folder}-{budget.mode}-{budget.labels:g}"
    parts = job.parts(run, loaded, data, test, quiet)
    request = {**to_json(budget), "task": task, "data": str(data), **_hashes(run, loaded, parts)}
    facts = job.facts(parts, settings)
    index = job.draw(parts, budget.labels, seed)
    own = {"optim": {"lr": budget.lr} if budget.lr else {}, "train": {"batch": budget.batch} if budget.batch else {}}
    before, taught = seen_hashes(run), job.hashes(parts, index)
    rows, found, labels = [], {}, budget.labels if budget.labels <= 1 else round(budget.labels)
    scratch = scratch or bundle.is_there(path / "scratch" / "encoder")  # what was compared before stays in the table
    starts = [("pretrained", path, True)] + ([("from_scratch", path / "scratch", False)] if scratch else [])
    for name, folder, pretrained in starts:
        mode = budget.mode if pretrained else "full"  # a frozen random encoder is no baseline of training
        config = _config(job, budget, mode, len(index), where, loaded.encoder.config, merged(own, changes))
        model = _model(job, run, loaded, facts, mode, seed, pretrained)
        _fit(model, config, parts.train, index, RunFolder(folder), {**request, "start": name}, quiet, name)
        found[name] = job.measure(model, parts, torch.device(where), quiet)
        for metric, (value, low, high) in job.figures(found[name], seed).items():
            rows.append(
                {"measure": f"finetune_{mode}", "features": name, "labels": labels, "labels_n": len(index)}
                | {"metric": metric, "value": value, "low": low, "high": high, "seeds": [seed], "n": len(found[name])}
            )
        if not pretrained or len(before):  # else what pretraining saw stays unknown
            seen = np.union1d(before, taught) if pretrained else np.unique(taught)
            with disk.filling(folder):
                np.save(folder / "seen.npy", seen)
        # One that is there is of the same request, and others may have put things into its folder.
        if not bundle.is_there(folder / "encoder"):
            _save(job, model, folder, facts, loaded.info)
    result: dict[str, Any] = {"protocol": parts.protocol, "data_hash": parts.test.fingerprint, "rows": rows}
    if scratch:
        result |= _compared(job, found, seed)
    disk.write_json(path / "finetune.json", result)
    if not quiet:
        from selftaught.reporting import results_table, show

        show(results_table(result))
    return path


def _hashes(run: Path, loaded: bundle.Bundle, parts: Any) -> dict[str, Any]:
    """What the encoder and the data are, whatever their names."""
    return {
        "recipe_hash": loaded.info.get("recipe_hash"),
        "data_hash": parts.train.fingerprint,
        "test_hash": parts.test.fingerprint,
        "encoder_hash": disk.file_hash(bundle.find(run) / bundle.WEIGHTS),
    }


def _check(changes: dict[str, Any], budget: Budget) -> None:
    """Refuse settings that an option says, or that are not for fine-tuning."""
    elsewhere = {"steps": "--epochs", "batch": "--batch", "seed": "--seed", "device": "--device", "optim": "optim.NAME"}
    said_once(changes, {"train": elsewhere}, budget.lr)
    train = changes.get("train", {})
    for name in ("world", "strategy"):
        if name in train:
            raise UserError(f"setting 'train.{name}' is of several processes, and finetune trains in one; leave it out")
    if (ema := train.get("ema")) is not None:  # of the encoder alone: the head would not fit it
        raise UserError(f"setting 'train.ema' is {ema}, and finetune keeps no averaged encoder; leave it out")
    from_json(OptimConfig, changes.get("optim", {}), "optim")


def _compared(job: Job, found: dict[str, Any], seed: int) -> dict[str, Any]:
    """What pretraining gained over training from scratch, as rows and in words; paired by test sample."""
    rows, sentences = [], []
    for metric, (value, low, high) in job.differences(found["pretrained"], found["from_scratch"], seed).items():
        both = {"features": "pretrained", "against": "from_scratch"}
        rows.append({"metric": metric, **both, "value": value, "low": low, "high": high})
        said = (
            "Pretraining helped"
            if low > 0
            else "Pretraining harmed"
            if high < 0
            else "No proof that pretraining helped"
        )
        gap = f"{value:+.3g} {job.gain[metric]} [{low:+.3g}, {high:+.3g}]"
        sentences.append(f"{said}: {gap} over training from scratch on the same budget.")
    return {"differences": rows, "verdict": sentences}


def _config(
    job: Job, budget: Budget, mode: str, n: int, device: str, encoder: EncoderConfig, changes: dict[str, Any]
) -> TrainConfig:
    """Settings for `n` labelled samples: the task's and mode's defaults, and what was asked for."""
    train, optim = changes.get("train", {}), changes.get("optim", {})
    batch = train.get("batch") or min(128, max(8, 2 ** int(math.log2(max(8, n // 4)))), n)
    rate_of_its_own(optim, batch)
    base = {
        "steps": max(1, math.ceil(budget.epochs * n / batch)),
        "batch": batch,
        "seed": budget.seed,
        "precision": pick_precision(device, encoder),
        "workers": LOADERS[device],
        "threads": torch.get_num_threads(),
        "device": device,
        "optim": {**job.describe(mode), **optim},
    }
    return from_json(TrainConfig, {**base, **train}, "train")


def _model(
    job: Job, run: Path, loaded: bundle.Bundle, facts: dict[str, Any], mode: str, seed: int, pretrained: bool
) -> Downstream:
    if pretrained:
        encoder = bundle.load(run).encoder.requires_grad_(True)
    else:
        encoder = build(loaded.encoder.config.bare(), rng.fold(seed, 11) >> 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.fold(seed, 12) >> 1)
        return job.build(encoder, loaded.modality, facts, mode)


def _claim(run: RunFolder, request: dict[str, Any]) -> None:
    """`RunFolder.claim`. What older versions left says nothing of its data's content, so it is neither gone on with nor
    taken for the result of the same request."""
    try:
        run.claim(request)
    except UserError:
        file = run.path / "request.json"
        then = load_json(file) if file.is_file() else {}
        if "recipe_hash" in then and "data_hash" not in then:
            raise UserError(
                f"'{run.path}' is of a version that kept no hash of the data, which may have changed; use another --out"
            ) from None
        if "recipe_hash" in then and "encoder_hash" not in then:
            raise UserError(
                f"'{run.path}' is of a version that trained encoders in evaluation mode; use another --out"
            ) from None
        raise


def _fit(
    task: Downstream,
    config: TrainConfig,
    source: Source,
    index: np.ndarray,
    run: RunFolder,
    request: dict[str, Any],
    quiet: bool,
    what: str,
) -> None:
    """Train a task to the end, from its last checkpoint where there is one."""
    order = Order(len(index), config.batch, config.seed)  # refuses what cannot be before the folder is taken
    _claim(run, request)
    with run.locked():
        run.begin(request)
        checkpoint.clean(run.checkpoints)
        trainer = Trainer(task, config, distributed.Ranks(), task.layer_of)
        _restore(trainer, config, run)
        disk.write_json(run.path / "train.json", to_json(config))
        outcome = fit(trainer, fetcher(source, index, config.seed, labels=True), order, run, (), quiet, what)
    if outcome.stopped_by is not None:
        raise Interrupted(outcome.stopped_by, outcome.steps, config.steps)


def _restore(trainer: Trainer, config: TrainConfig, run: RunFolder) -> None:
    """Go on from the last checkpoint where there is one; UserError where it began with other settings."""
    saved, passed = checkpoint.load_last(run.checkpoints)
    for line in passed:
        say(f"passed over: {line}")
    if saved is None:
        run.cut_logs({})
        return
    now = to_json(config)
    was = load_json(run.path / "train.json") if (run.path / "train.json").is_file() else now
    if (changed := differences(was, now)) and saved.step < config.steps:
        raise UserError(
            f"'{run.path}' began otherwise ({'; '.join(changed[:3])}); go on as it began, or use another --out"
        )
    trainer.restore(saved, run)


def _save(job: Job, task: Downstream, folder: Path, facts: dict[str, Any], info: dict[str, Any]) -> None:
    kept = {k: v for k, v in info.items() if k in ("pretext", "data", "data_hash", "recipe_hash", "seed")}
    own = {job.file: {k: v.detach().cpu().contiguous() for k, v in job.weights(task).items()}}
    lora.merge(task.encoder)
    bundle.save(folder / "encoder", task.encoder, task.modality, {**kept, **facts}, task.encoder.state_dict(), own)
