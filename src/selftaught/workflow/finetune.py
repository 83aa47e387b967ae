"""finetune and predict: a classifier from few labels, beside one trained from scratch on the same budget."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from selftaught import bundle, disk, rng
from selftaught.data import Source
from selftaught.downstream import lora
from selftaught.downstream.base import describe
from selftaught.downstream.classify import Classify
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError
from selftaught.evaluation.efficiency import draw_labels
from selftaught.evaluation.features import raw_batches
from selftaught.evaluation.intervals import bootstrap
from selftaught.settings import from_json, merged, sections, to_json
from selftaught.train import checkpoint, distributed
from selftaught.train.config import TrainConfig
from selftaught.train.folder import RunFolder
from selftaught.train.loop import Trainer, fit
from selftaught.train.order import Order
from selftaught.train.progress import Meter
from selftaught.workflow.evaluate import Split, seen_hashes, split
from selftaught.workflow.kinds import kind_called
from selftaught.workflow.prepare import (
    fetcher,
    open_source,
    pick_device,
    pick_precision,
    pick_threads,
    positive,
    say,
    still_readable,
)
from selftaught.workflow.pretrain import Interrupted

_HEAD = "head.safetensors"


def finetune(
    run: Path,
    data: Any,
    test: Any,
    mode: str,
    labels: float,
    epochs: float,
    batch: int | None,
    lr: float | None,
    scratch: bool,
    out: Path | None,
    seed: int,
    device: str,
    settings: tuple[str, ...],
    quiet: bool,
) -> Path:
    """Fine-tune, test, and write finetune.json; returns the folder, which `predict` reads."""
    positive(labels=labels, epochs=epochs, batch=batch, lr=lr)
    changes = sections(settings, ("optim", "train"))
    loaded = bundle.load(run)
    where = pick_device(device)
    torch.set_num_threads(pick_threads())
    path = out or run / f"finetune-{mode}-{labels:g}"
    request = {"mode": mode, "labels": labels, "epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    request |= {"settings": list(settings), "data": str(data), "recipe_hash": loaded.info.get("recipe_hash")}
    parts = _parts(run, loaded, data, test, quiet)
    amount = labels if labels <= 1 else round(labels)
    assert parts.train.labels is not None
    drawn = draw_labels(torch.from_numpy(parts.train.labels[parts.train_index]), amount, seed=seed, draw=0)
    index = parts.train_index[drawn.numpy()]
    own = {"optim": {"lr": lr} if lr else {}, "train": {"batch": batch} if batch else {}}
    config = _config(mode, len(index), epochs, seed, where, loaded.encoder.config, merged(own, changes))
    classes = parts.train.classes
    rows = []
    starts = [("pretrained", path, True)] + ([("from_scratch", path / "scratch", False)] if scratch else [])
    for name, folder, pretrained in starts:
        start_mode = mode if pretrained else "full"  # a frozen random encoder is no baseline of training
        task = _task(run, loaded, start_mode, len(classes), seed, pretrained)
        task = _fit(task, config, parts.train, index, RunFolder(folder), {**request, "start": name}, quiet, name)
        correct = _correct(task, parts, torch.device(where))
        value, low, high = bootstrap(correct[None], seed=seed)
        rows.append(
            {"measure": f"finetune_{start_mode}", "features": name, "labels": labels, "labels_n": len(index)}
            | {"metric": "accuracy", "value": value, "low": low, "high": high, "seeds": [seed], "n": len(correct)}
        )
        _save(task, folder, classes, loaded.info)
    result = {"protocol": parts.protocol, "data_hash": parts.test.fingerprint, "rows": rows}
    disk.write_json(path / "finetune.json", result)
    if not quiet:
        from rich.console import Console

        from selftaught.reporting import results_table

        Console().print(results_table({**result, "verdict": []}))
    return path


def _parts(run: Path, loaded: bundle.Bundle, data: Any, test: Any, quiet: bool) -> Split:
    """With a test set of its own DATA teaches; without one, DATA is split as evaluate splits it."""
    seen, size = seen_hashes(run), loaded.encoder.config.size
    parts = split(data, None, seen, size, quiet) if test is None else split(test, data, seen, size, quiet)
    train, test = (kind_called(s.kind).whole(s, loaded.modality, quiet) for s in (parts.train, parts.test))
    return replace(parts, train=train, test=test)


def _config(
    mode: str, n: int, epochs: float, seed: int, device: str, encoder: EncoderConfig, changes: dict[str, Any]
) -> TrainConfig:
    """Settings for `n` labelled samples: the mode's defaults, and what was asked for."""
    train, optim = changes.get("train", {}), changes.get("optim", {})
    batch = train.get("batch") or min(128, max(8, 2 ** int(math.log2(max(8, n // 4)))), n)
    base = {
        "steps": max(1, math.ceil(epochs * n / batch)),
        "batch": batch,
        "seed": seed,
        "precision": pick_precision(device, encoder),
        "threads": torch.get_num_threads(),
        "device": device,
        "optim": {**describe(mode), **optim},
    }
    return from_json(TrainConfig, {**base, **train}, "train")


def _task(run: Path, loaded: bundle.Bundle, mode: str, classes: int, seed: int, pretrained: bool) -> Classify:
    if pretrained:
        encoder = bundle.load(run).encoder.requires_grad_(True)
    else:
        encoder = build(loaded.encoder.config.bare(), rng.fold(seed, 11) >> 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.fold(seed, 12) >> 1)
        return Classify(encoder, loaded.modality, Classify.Config(classes, mode))


def _fit(
    task: Classify,
    config: TrainConfig,
    source: Source,
    index: np.ndarray,
    run: RunFolder,
    request: dict[str, Any],
    quiet: bool,
    what: str,
) -> Classify:
    """Train a classifier to the end, from its last checkpoint where there is one."""
    order = Order(len(index), config.batch, config.seed)
    run.claim(request)
    run.begin(request)
    ranks = distributed.Ranks()
    trainer = Trainer(task, config, ranks, lambda name: task.encoder.layer_of(name.removeprefix("encoder.")))
    saved, passed = checkpoint.load_last(run.checkpoints)
    for line in passed:
        say(f"passed over: {line}")
    if saved is not None:
        trainer.restore(saved, run)
    else:
        run.cut_logs({})
    disk.write_json(run.path / "train.json", to_json(config))
    outcome = fit(trainer, fetcher(source, index, config.seed, labels=True), order, run, (), quiet, what)
    if outcome.stopped_by is not None:
        raise Interrupted(outcome.stopped_by, outcome.steps, config.steps)
    return task


def _probabilities(task: Classify, source: Source, index: np.ndarray, device: torch.device) -> torch.Tensor:
    task = task.to(device).eval()
    with torch.inference_mode():
        return torch.cat([task.predict(batch).cpu() for batch in raw_batches(source, index, device)])


def _correct(task: Classify, parts: Split, device: torch.device) -> torch.Tensor:
    assert parts.test.labels is not None
    found = _probabilities(task, parts.test, parts.test_index, device).argmax(1)
    correct = found == torch.from_numpy(parts.test.labels[parts.test_index])
    return correct[torch.from_numpy(parts.test.readable(parts.test_index))]


def _save(task: Classify, folder: Path, classes: list[str], info: dict[str, Any]) -> None:
    kept = {k: v for k, v in info.items() if k in ("pretext", "data", "data_hash", "recipe_hash", "seed")}
    lora.merge(task.encoder)
    tensors = task.encoder.state_dict()
    head = {_HEAD: {k: v.detach().cpu().contiguous() for k, v in task.head.state_dict().items()}}
    bundle.save(folder / "encoder", task.encoder, task.modality, {**kept, "classes": classes}, tensors, head)


def predict(run: Path, data: Any, out: Path, device: str, quiet: bool) -> Path:
    """Classes and probabilities of every sample of `data`, by a fine-tuned classifier."""
    loaded = bundle.load(run)
    classes = loaded.info.get("classes")
    head = bundle.find(run) / _HEAD
    if not classes or not head.is_file():
        raise UserError(f"'{run}' holds no classifier; make one with: selftaught finetune {run} DATA")
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"'{out}' must end in .csv or .parquet")
    if out.exists():
        raise UserError(f"'{out}' exists; name another file with --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    task = Classify(loaded.encoder, loaded.modality, Classify.Config(len(classes), "head"))
    task.head.load_state_dict(load_file(head))
    where = torch.device(pick_device(device))
    source = open_source(data, loaded.encoder.config.size, quiet)
    source = kind_called(loaded.modality.name).whole(source, loaded.modality, quiet)
    with Meter("predict", len(source), quiet=quiet) as meter:
        probabilities = _probabilities(task, source, np.arange(len(source)), where)
        meter.update(len(source))
    here = still_readable(source)
    best = probabilities[torch.from_numpy(here)].max(1)
    names = [source.names[i] for i in here.tolist()]
    found = [classes[i] for i in best.indices.tolist()]
    with disk.replacing(out) as temporary:
        if out.suffix == ".parquet":
            pq.write_table(pa.table({"name": names, "class": found, "probability": best.values.numpy()}), temporary)
        else:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["name", "class", "probability"])
                writer.writerows((n, c, f"{p:.6f}") for n, c, p in zip(names, found, best.values.tolist(), strict=True))
    return out
