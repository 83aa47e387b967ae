"""From the user's data to what training reads: source, split, preprocessing, batches."""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught.batch import Batch
from selftaught.data import Source, open_data
from selftaught.data.images import ImageSource
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.precision import fast_bf16, sound_in_bf16
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality
from selftaught.train.progress import Meter

_STATISTICS_SAMPLES = 2048
_STORED = 111  # px: small training sizes share one prepared copy, and crops have detail to zoom into


def say(line: str) -> None:
    """A line for the person at the terminal; results go to standard output, this does not."""
    print(line, file=sys.stderr, flush=True)


def positive(**given: int | float | None) -> None:
    """UserError for an option that was given (not None) and is no finite number above 0."""
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g} is not above 0; leave it out for the automatic choice")


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

    Measured on a Zen 4 CPU: a training step of ResNet-18 takes half the time, one of a small ViT five sixths.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if fast_bf16() and sound_in_bf16(build(encoder.bare())) else "fp32"


def pick_threads() -> int:
    """CPU threads of this rank: OMP_NUM_THREADS where it is set, else all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


def open_source(data: Any, size: int | None, quiet: bool = False, **options: Any) -> ImageSource:
    """Open data with messages and a progress line; pictures are stored a little larger than `size`."""
    short_side = None if size is None else max(_STORED, -(-size * 115 // 100))
    meter: list[Meter] = []

    def progress(done: int, total: int) -> None:
        if not meter:
            meter.append(Meter("prepare", total, quiet=quiet).__enter__())
        meter[0].update(done)

    tell = (lambda line: None) if quiet else say
    try:
        source = open_data(data, short_side=short_side, say=tell, progress=progress, **options)
        assert isinstance(source, ImageSource)  # the one kind of this version
        return source
    finally:
        if meter:
            meter[0].__exit__(None, None, None)


def pick_size(source: ImageSource, device: str) -> int:
    """Training size in pixels: the data's own where it is small, else what the machine can bear."""
    short = int(np.median(source.sizes.min(axis=1)))
    if short <= 64:
        return max(8, short)
    limit = 96 if device == "cpu" else 224
    return min(limit, short // 8 * 8)


def fit_modality(source: ImageSource, size: int, index: np.ndarray) -> ImageModality:
    """Preprocessing with the mean and standard deviation of each channel over (a part of) the training samples."""
    some = index[:: max(1, len(index) // _STATISTICS_SAMPLES)]
    total = squares = torch.zeros(source.channels, dtype=torch.float64)
    count = 0
    for part in np.array_split(some, max(1, len(some) // 256)):
        inputs = source.fetch(part)
        pixels = inputs["pixels"].double() / 255  # the canvas beyond a picture is zero and adds nothing
        total = total + pixels.sum(dim=(0, 2, 3))
        squares = squares + pixels.square().sum(dim=(0, 2, 3))
        count += int(inputs["size"].prod(dim=1).sum())
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
    rounded = [tuple(round(float(v), 4) for v in t) for t in (mean, std)]
    return ImageModality(size, source.channels, rounded[0], rounded[1])


def fetcher(source: Source, index: np.ndarray, seed: int, labels: bool = False) -> Callable[[np.ndarray, int], Batch]:
    """fetch(positions, step) -> Batch, where positions count within `index` and a sample keeps its place in `source`."""

    def fetch(positions: np.ndarray, step: int) -> Batch:
        chosen = index[positions]
        inputs, target = source.fetch(chosen), None
        if labels and source.labels is not None:
            target = torch.from_numpy(source.labels[source.actual(chosen)])
        return Batch(inputs, torch.from_numpy(chosen), seed, step, target)

    return fetch


def still_readable(source: Source) -> np.ndarray:
    """Positions of the samples that were read as they are; says how many others are left out."""
    here = np.flatnonzero(source.readable(np.arange(len(source))))
    if len(here) < len(source):
        say(f"{len(source) - len(here)} samples could not be read any more and are left out")
    return here


def name_of(data: Any) -> str:
    """A short name for a run folder."""
    return Path(str(data)).resolve().name.split(".")[0] if isinstance(data, str | os.PathLike) else "data"
