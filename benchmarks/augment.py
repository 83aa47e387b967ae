"""SimCLR views per second on one core, beside lightly's transforms of the same strengths.

Ours with its default, fused colour jitter (`selftaught/modality/image/colour.py` says how it differs).

python benchmarks/augment.py [--json]
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; it holds for both sides

import selftaught.encoders._torchvision  # noqa: F401  (it goes before lightly, which imports torchvision)

# isort: split
import numpy as np
import torch
from lightly.transforms.simclr_transform import SimCLRTransform, SimCLRViewTransform
from PIL import Image

from _timing import Row, compare, main
from selftaught.batch import Batch
from selftaught.data.images import on_canvas
from selftaught.modality.image import ImageModality
from selftaught.modality.image.decode import decode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def natural(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A picture with the 1/f spectrum of natural ones: noise summed over octaves, with edges."""
    total = np.zeros((height, width, 3))
    for octave in range(7):
        small = Image.fromarray(rng.integers(0, 256, (2**octave + 1, 2**octave + 1, 3), dtype=np.uint8))
        total += (np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) - 127.5) / 2 ** (0.6 * octave)
    total += 60 * np.sign(total.mean(-1, keepdims=True))
    return Image.fromarray(np.clip(total / 2 + 127.5, 0, 255).astype(np.uint8))


def batch_of(pictures: list[np.ndarray], step: int) -> Batch:
    """Pictures [C, H, W] as a batch, made as the sources make theirs."""
    pixels, size = on_canvas(pictures, 3)
    return Batch({"pixels": pixels, "size": size}, torch.arange(len(pictures)), seed=0, step=step)


def small_pictures() -> Row:
    """One view of 32-px pictures that are in memory, decoded."""
    rng = np.random.default_rng(0)
    pictures = [natural(rng, 32, 32) for _ in range(256)]
    batch = batch_of([np.array(x).transpose(2, 0, 1) for x in pictures], step=0)
    modality = ImageModality(32, 3, MEAN, STD)
    view = modality.contrastive_view()
    peer = SimCLRViewTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    return compare(
        "SimCLR view, 32 px, from memory",
        lambda: modality.view(batch, view, stream=1),
        lambda: torch.stack([peer(x) for x in pictures]),
        "pictures/s",
        len(pictures),
        repeats=15,
    )


EPOCHS = 10


def large_pictures(long: int, short: int, n: int) -> Iterator[Row]:
    """Two views of 224 px from JPEG bytes: in one pass, and over ten epochs.

    Ours decodes a file once in its life, at a reduced DCT scale where it is large enough, to what the prepared cache
    holds (short side 258); the peer decodes it whenever it needs it.
    """
    rng = np.random.default_rng(0)
    files = []
    for i in range(n):
        file = io.BytesIO()
        natural(rng, *((long, short) if i % 3 else (short, long))).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    modality = ImageModality(224, 3, MEAN, STD)
    view = modality.contrastive_view()
    peer = SimCLRTransform(input_size=224)

    def prepared(short_side: int | None) -> Batch:
        return batch_of([decode(x, short_side=short_side) for x in files], step=0)

    def views(batch: Batch) -> list[torch.Tensor]:
        return [modality.view(batch, view, stream) for stream in (1, 2)]

    def one_pass() -> None:
        views(prepared(258 if short > 2 * 258 else None))

    def ten_epochs() -> None:
        batch = prepared(258)
        for _ in range(EPOCHS):
            views(batch)

    def theirs() -> list[torch.Tensor]:
        made = [peer(Image.open(io.BytesIO(x)).convert("RGB")) for x in files]
        return [torch.stack(pair) for pair in zip(*made)]

    def theirs_ten_times() -> None:
        for _ in range(EPOCHS):
            theirs()

    name = f"two views, 224 px, {long} x {short} JPEG"
    yield compare(f"{name}, one pass", one_pass, theirs, "pictures/s", n, repeats=7)
    yield compare(f"{name}, ten epochs", ten_epochs, theirs_ten_times, "pictures/s", n * EPOCHS, repeats=3)


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    yield small_pictures()
    yield from large_pictures(500, 375, 64)
    yield from large_pictures(1600, 1200, 32)


if __name__ == "__main__":
    main(rows())
