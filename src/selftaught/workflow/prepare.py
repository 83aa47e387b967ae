"""From the user's data to what training reads: source, split, preprocessing, batches."""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from selftaught.batch import Batch
from selftaught.data import Source, open_data
from selftaught.data.asked import parted
from selftaught.data.opening import is_events
from selftaught.data.text_pairs import is_pairs, open_pairs
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.precision import fast_bf16, sound_in_bf16
from selftaught.errors import UserError, say
from selftaught.modality.base import Modality
from selftaught.train.progress import Meter
from selftaught.workflow.kinds import kind_called

_STORED = 111  # px: small training sizes share one prepared copy, and crops have detail to zoom into


def positive(**given: int | float | None) -> None:
    """UserError for an option that was given (not None) and is no finite number above 0."""
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(
                f"--{name.replace('_', '-')} {value:g} is not above 0; leave it out for the automatic choice"
            )


def label_budget(amount: float) -> None:
    """UserError for what is neither a share (up to 1) nor a whole number (above 1) of labels."""
    positive(labels=amount)
    if amount > 1 and amount != round(amount):
        raise UserError(f"--labels {amount:g} is neither a share up to 1 nor a whole number; use {round(amount)}, say")


def said_once(changes: dict[str, dict[str, Any]], elsewhere: dict[str, dict[str, str]], lr: float | None) -> None:
    """UserError for settings that an option or the data says (`elsewhere`, by section), and for two learning rates."""
    for section, values in changes.items():
        for name in values:
            if where := elsewhere.get(section, {}).get(name):
                raise UserError(f"setting '{section}.{name}' is given by {where}; leave it out of --set")
    if lr is not None and "lr" in changes.get("optim", {}):
        raise UserError("--lr and setting 'optim.lr' both say the learning rate; give one")


def rate_of_its_own(optim: dict[str, Any], batch: int) -> None:
    """UserError for settings of `optim` that name an optimiser which the automatic learning rate, AdamW's, would not fit."""
    published = {"lars": 0.3, "sgd": 0.03}  # at batch 256: SimCLR's and MoCo's
    if (name := optim.get("name")) in published and optim.get("lr") is None:
        raise UserError(
            f"--set optim.name={name} needs a learning rate of its own, because the automatic one is AdamW's; add --lr, "
            f"{published[name] * batch / 256:.2g} say"
        )


def pick_device(device: str) -> str:
    """cpu or cuda; "auto" takes the GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"device '{device}' is unknown; use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' is not to be had on this machine; use --device cpu")
    return device


def pick_precision(device: str, encoder: EncoderConfig) -> str:
    """bf16 (autocast) where it is faster than float32 and its kernels can be trusted, else fp32.

    What it gains: benchmarks/simclr_step.py, with and without `--set train.precision=fp32`.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if fast_bf16() and sound_in_bf16(build(encoder.bare())) else "fp32"


def pick_threads() -> int:
    """CPU threads of this rank: OMP_NUM_THREADS where it is set, else all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


def open_source(data: Any, size: int | None, quiet: bool = False, **options: Any) -> Source:
    """Open data with messages and a progress line; pictures are stored a little larger than `size`."""
    short_side = None if size is None else max(_STORED, -(-size * 115 // 100))
    meter: list[Meter] = []

    def progress(done: int, total: int) -> None:
        if not meter:
            meter.append(Meter("prepare", total, quiet=quiet).__enter__())
        meter[0].update(done)

    tell = (lambda line: None) if quiet else say
    try:
        return open_data(data, short_side=short_side, say=tell, progress=progress, **options)
    finally:
        if meter:
            meter[0].__exit__(None, None, None)


def pretext_for(data: Any, name: str) -> str:
    """The pretext task that "auto" means for the data, by its kind; any other name as it is."""
    if name != "auto":
        return name
    return kind_called("event" if is_events(data) else "image").default_pretext


def open_any(data: Any, size: int | None, quiet: bool = False) -> Source:
    """Open pairs of texts where `data` names such, else what encoders learn from."""
    if is_pairs(data):
        return open_pairs(data, (lambda line: None) if quiet else say)
    return open_source(data, size, quiet)


def same_kind(source: Source, modality: Modality, data: Any) -> None:
    """UserError where `data` is of another kind than what an encoder reads."""
    if source.kind != modality.name:
        what = f"'{data}'" if isinstance(data, str | os.PathLike) else f"this {type(data).__name__}"
        raise UserError(f"{what} is {source.kind} data, and the encoder reads {modality.name} data; name such data")


def fetcher(source: Source, index: np.ndarray, seed: int, labels: bool = False) -> Callable[[np.ndarray, int], Batch]:
    """fetch(positions, step) -> Batch, where positions count within `index` and a sample keeps its place in `source`.

    What stands in for a sample that can no longer be read is of `index` as well: neither held out nor without a label.
    """
    part = source.subset(index)

    def fetch(positions: np.ndarray, step: int) -> Batch:
        inputs, target = part.fetch(positions), None
        if labels and part.labels is not None:
            target = torch.from_numpy(part.labels[part.actual(positions)])
        return Batch(inputs, torch.from_numpy(index[positions]), seed, step, target)

    return fetch


def still_readable(source: Source) -> np.ndarray:
    """Positions of the samples that were read as they are; says how many others are left out."""
    here = np.flatnonzero(source.readable(np.arange(len(source))))
    if len(here) < len(source):
        say(f"{len(source) - len(here)} samples could not be read any more and are left out")
    return here


def name_of(data: Any) -> str:
    """A short name for a run folder."""
    return parted(str(data))[0].resolve().name.split(".")[0] if isinstance(data, str | os.PathLike) else "data"
