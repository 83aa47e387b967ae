"""Quality for equal time: SimCLR on CIFAR-10 with selftaught's defaults and with lightly's own recipe.

    python benchmarks/time_to_quality.py --data CIFAR_FOLDER [--minutes 10] [--seeds 0 1 2] [--out FILE] [--json]

Same network and initial weights, same pictures, same wall-clock budget, 2 threads. lightly's side is its CIFAR-10
benchmark (docs/source/getting_started/benchmarks/cifar10_benchmark.py): batch 128, SGD, learning rate 0.06 (another
--batch: in proportion), momentum 0.9, weight decay 5e-4, cosine, temperature 0.5, no blur; its loader runs with 0 or 2 processes,
whichever trains faster here. Each side's speed is measured first, so that both schedules end with the time.

At ten moments training stops and the clock with it: weighted kNN accuracy (k 200, temperature 0.1) of the pooled
features on the test pictures, from 10,000 training pictures; labels serve for nothing else. Each finished run is a
line of --out and is not run again. With --held-out N the last N training pictures take the place of the test pictures
and are not trained on: for choosing settings.

Rows: final accuracy of each seed and on average, and how much longer the peer takes to its own final figure than ours
takes to reach it (linear between measures; null where ours never does).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; it holds for both sides

from _simclr import Ours, Peer, encoder_of, read, recipe_for, source_of  # first: it prepares torchvision

# isort: split
import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from scipy import stats
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from _timing import Row, main
from selftaught.encoders import Encoder
from selftaught.evaluation.knn import knn
from selftaught.modality.image import ImageModality
from selftaught.rng import permutation
from selftaught.settings import digest

MOMENTS, BANK, WARM = 10, 10_000, 4
SIDES = ("ours", "peer")


class Task:
    """The pictures of a comparison: to train on, to measure with."""

    def __init__(self, folder: Path, held_out: int) -> None:
        pixels, labels = read(folder, "train")
        order = permutation(len(pixels), 1)
        if held_out:
            queries, query_labels = pixels[order[-held_out:]], labels[order[-held_out:]]
            order = order[:-held_out]
        else:
            queries, query_labels = read(folder, "test")
        self.pixels, labels = pixels[order], labels[order]
        self.queries, self.query_labels = queries, torch.from_numpy(query_labels)
        self.bank, self.bank_labels = self.pixels[:BANK], torch.from_numpy(labels[:BANK])

    def accuracy(self, encoder: Encoder, modality: ImageModality) -> float:
        """Weighted kNN accuracy of frozen, pooled features; both sides are measured by this."""
        encoder.eval()
        mean, std = (torch.tensor(x)[:, None, None] for x in (modality.mean, modality.std))

        def features(pixels: np.ndarray) -> Tensor:
            parts = torch.from_numpy(pixels).split(500)
            return torch.cat([encoder((x / 255 - mean) / std).pooled for x in parts])

        with torch.inference_mode():
            predicted = knn(features(self.bank), self.bank_labels, features(self.queries))
        encoder.train()
        return (predicted == self.query_labels).float().mean().item()


def strided(encoder: Encoder, stride: int) -> Encoder:
    """The encoder, its first convolution with another stride: stride 2 is a quarter of the work."""
    convolution: Any = encoder.model.conv1  # type: ignore[union-attr]
    convolution.stride = (stride, stride)
    return encoder


class Contest:
    """Both sides' training of the same network on the same pictures."""

    def __init__(self, args: argparse.Namespace, task: Task) -> None:
        self.args, self.task = args, task
        self.source = source_of(task.pixels)

    def recipe(self, side: str, seed: int) -> str | None:
        """Hash of our recipe: a run under other defaults is another run."""
        return digest(recipe_for(self.source, self.args.encoder, None, seed, self.args.set)) if side == "ours" else None

    def ours(self, seed: int, steps: int) -> tuple[Ours, Callable[[Any], None], ImageModality]:
        """selftaught's defaults, but for --set."""
        args = self.args
        recipe = recipe_for(self.source, args.encoder, None, seed, args.set)
        side = Ours(self.source, recipe, steps, lambda encoder: strided(encoder, args.stride))
        assert isinstance(side.modality, ImageModality)
        return side, side.step, side.modality

    def peer(self, seed: int, steps: int, workers: int) -> tuple[Peer, Callable[[Any], None], ImageModality]:
        """lightly's CIFAR-10 benchmark."""
        args = self.args
        recipe = recipe_for(self.source, args.encoder, args.batch, seed)
        encoder = strided(encoder_of(recipe), args.stride)
        torch.manual_seed(seed)
        transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
        lr = 0.06 * args.batch / 128

        def sgd(parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

        side = Peer(self.task.pixels, encoder, transform, sgd, args.batch, workers)
        schedule = LambdaLR(side.optimizer, lambda i: 0.5 * (1 + math.cos(math.pi * i / steps)))

        def step(batch: Any) -> None:
            side.step(batch)
            schedule.step()

        mean, std = (tuple(IMAGENET_NORMALIZE[name]) for name in ("mean", "std"))
        return side, step, ImageModality(32, 3, mean, std)

    def pace(self, make: Callable[[int], tuple[Ours | Peer, Callable[[Any], None], Any]]) -> float:
        """Mean seconds a step, loading included, over a few seconds of training that is thrown away."""
        side, step, _ = make(10**6)
        times: list[float] = []
        supply = iter(side.batches())
        while len(times) < WARM + 5 or sum(times) < self.args.minutes * 60 * 0.03:
            start = time.perf_counter()
            step(next(supply))
            times.append(time.perf_counter() - start)
        return statistics.mean(times[WARM:])

    def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train one side for the budget: its curve of (seconds, accuracy)."""
        workers = None
        make: Callable[[int], tuple[Ours | Peer, Callable[[Any], None], ImageModality]]
        if name == "ours":
            make = lambda steps: self.ours(seed, steps)  # noqa: E731
            pace = self.pace(make)
        else:
            paces = {n: self.pace(lambda steps, n=n: self.peer(seed, steps, n)) for n in (0, 2)}  # type: ignore[misc]
            workers = min(paces, key=lambda n: paces[n])
            pace = paces[workers]
            make = lambda steps: self.peer(seed, steps, workers)  # noqa: E731
        steps = max(MOMENTS, round(self.args.minutes * 60 / pace))
        side, step, modality = make(steps)
        moments = {round(steps * (i + 1) / MOMENTS) for i in range(MOMENTS)}
        batch = side.order.batch if isinstance(side, Ours) else self.args.batch
        clock, curve = 0.0, []
        supply = iter(side.batches())
        for i in range(1, steps + 1):
            start = time.perf_counter()
            step(next(supply))
            clock += time.perf_counter() - start
            if i in moments:
                accuracy = self.task.accuracy(side.encoder, modality)
                curve.append([round(clock, 2), round(accuracy, 4)])
                say(
                    f"{name} seed {seed}: step {i}/{steps}, {clock:.0f} s, {i * batch / clock:.0f} samples/s, "
                    f"kNN {accuracy:.4f}"
                )
        return {"steps": steps, "workers": workers, "curve": curve}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def runs(args: argparse.Namespace) -> dict[tuple[str, int], dict[str, Any]]:
    """The run of each side and seed: from --out where it is there, else made and added to it."""
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    shared = {name: getattr(args, name) for name in ("minutes", "encoder", "stride", "batch", "held_out", "threads")}
    contest, found = Contest(args, Task(args.data, args.held_out)), {}
    for seed in args.seeds:
        for side in SIDES if args.only is None else (args.only,):
            key = {"side": side, "seed": seed, **shared, "recipe": contest.recipe(side, seed)}
            run = next((line for line in known if line["key"] == key), None)
            if run is None:
                run = {"key": key, **contest.run(side, seed)}
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(run) + "\n")
            found[side, seed] = run
    return found


def reached(curve: list[list[float]], level: float) -> float | None:
    """Seconds at which a curve first reaches an accuracy, linear between its points; None where it never does."""
    for (t0, a0), (t1, a1) in itertools.pairwise([[0.0, 0.0], *curve]):
        if a1 >= level:
            return t0 + (t1 - t0) * max(0.0, (level - a0) / (a1 - a0))
    return None


def rows(args: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(args.threads)
    curves = {key: run["curve"] for key, run in runs(args).items()}
    if args.only is not None:
        for (side, seed), curve in curves.items():
            final = curve[-1][1]
            ours, peer = (final, None) if side == "ours" else (None, final)
            yield Row(name=f"kNN accuracy, seed {seed}", unit="", ours=ours, peer=peer, ratio=None)
        return
    finals = np.array([[curves[side, seed][-1][1] for side in SIDES] for seed in args.seeds])
    for seed, (mine, theirs) in zip(args.seeds, finals.tolist()):
        yield Row(name=f"kNN accuracy, seed {seed}", unit="", ours=mine, peer=theirs, ratio=mine / theirs)
    mine, theirs = finals.mean(0).tolist()
    yield Row(name="kNN accuracy, mean", unit="", ours=mine, peer=theirs, ratio=mine / theirs)
    if len(finals) > 1:
        low, high = stats.t.interval(0.95, len(finals) - 1, *mean_and_error(finals[:, 0] - finals[:, 1]))
        yield Row(name="accuracy above the peer's, 95 % low", unit="", ours=low, peer=None, ratio=None)
        yield Row(name="accuracy above the peer's, 95 % high", unit="", ours=high, peer=None, ratio=None)
    ratios = []
    for seed in args.seeds:
        end, level = curves["peer", seed][-1]
        needed = reached(curves["ours", seed], level)
        ratios.append(None if needed is None else end / needed)
        yield Row(name=f"time to the peer's accuracy, seed {seed}", unit="s", ours=needed, peer=end, ratio=ratios[-1])
    every = [r for r in ratios if r is not None]
    mean = statistics.geometric_mean(every) if len(every) == len(ratios) else None
    yield Row(name="time to the peer's accuracy, mean", unit="", ours=None, peer=None, ratio=mean)


def mean_and_error(x: np.ndarray) -> tuple[float, float]:
    return float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/ and test/CLASS/ pictures")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoder", default="resnet10_x0.25")
    parser.add_argument("--stride", type=int, default=2, help="of the encoder's first convolution")
    parser.add_argument("--batch", type=int, default=128, help="of the peer; ours takes its default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file of finished runs, one JSON object a line")
    parser.add_argument("--held-out", type=int, default=0, help="measure on this many training pictures instead")
    parser.add_argument("--only", choices=SIDES, help="one side alone")
    parser.add_argument("--set", action="append", default=[], help="a setting of selftaught's side, for trials")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    main(rows(parse()))
