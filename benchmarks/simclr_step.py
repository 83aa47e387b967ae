"""A whole SimCLR training step, from pictures in memory to updated weights, beside lightly's.

    python benchmarks/simclr_step.py [--data CIFAR_FOLDER] [--batch 128] [--repeats 5] [--json]

ResNet-18 (CIFAR stem) and ViT-tiny (patch 4) on 32-px pictures, AdamW, 2 threads. Ours: the training loop's step with
its loader and defaults, bf16 among them where the CPU has it (--set train.precision=fp32: float32). Peer: lightly's
SimCLR example with the same network and initial weights, in float32, with 0 and with 2 loader processes; the faster one
counts. Blocks of steps alternate; each begins with a step that is not timed, and ends its loader, so that no process
works ahead during another's block. Medians.

"loading share": the larger of what the loop waits for its batches and what fetching them takes, in % of our step.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; it holds for both sides

from _simclr import Ours, Peer, encoder_of, read, recipe_for, source_of, synthetic  # first: it prepares torchvision

# isort: split
import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from torch.optim import AdamW

from _timing import Row, main, seconds

NETWORKS = {"ResNet-18": "resnet18", "ViT-tiny": "vit_tiny_patch16_224"}


def block(side: Ours | Peer, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each of `steps` steps, loading included, and of waiting for its batch alone."""
    whole, waited = [], []
    supply = iter(side.batches())
    for i in range(steps + 1):
        start = time.perf_counter()
        batch = next(supply)
        loaded = time.perf_counter()
        side.step(batch)
        if i:
            waited.append(loaded - start)
            whole.append(time.perf_counter() - start)
    del supply
    gc.collect()  # ends the loader's processes
    return whole, waited


def rows_of(name: str, encoder: str, pixels: np.ndarray, args: argparse.Namespace) -> Iterator[Row]:
    """The rows of one network."""
    batch, repeats, steps = args.batch, args.repeats, args.steps
    source = source_of(pixels)
    recipe = recipe_for(source, encoder, batch, seed=0, settings=args.set)
    optim = recipe.train.optim
    ours = Ours(source, recipe, steps=10**6)
    peers = {
        workers: Peer(
            pixels,
            encoder_of(recipe),
            SimCLRTransform(input_size=32),
            lambda p: AdamW(p, lr=optim.lr, weight_decay=optim.weight_decay),
            batch,
            workers,
        )
        for workers in (0, 2)
    }
    mine: list[float] = []
    waits: list[float] = []
    theirs: dict[int, list[float]] = {workers: [] for workers in peers}
    for _ in range(repeats):
        whole, waited = block(ours, steps)
        mine += whole
        waits += waited
        for workers, peer in peers.items():
            theirs[workers] += block(peer, steps)[0]
    step = statistics.median(mine)
    best = min(statistics.median(times) for times in theirs.values())
    yield Row(name=f"SimCLR step, {name}", unit="pictures/s", ours=batch / step, peer=batch / best, ratio=best / step)
    fetching = statistics.median(seconds(lambda: ours.fetch(ours.order.of_step(0), 0)) for _ in range(9))
    share = 100 * max(statistics.median(waits), fetching) / step
    yield Row(name=f"loading share, {name}", unit="% of our step", ours=share, peer=None, ratio=None)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(args.threads)
    pixels = read(args.data, "train")[0] if args.data else synthetic(8192)
    for name, encoder in NETWORKS.items():
        if args.only in (None, encoder):
            yield from rows_of(name, encoder, pixels, args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train/CLASS/ pictures; without: synthetic ones")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3, help="blocks of each side")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a block")
    parser.add_argument("--set", action="append", default=[], help="a setting of selftaught's side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=NETWORKS.values(), help="one network alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    main(rows(parser.parse_args()))
