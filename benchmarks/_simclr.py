"""SimCLR on small pictures in memory: as selftaught trains it, and as lightly's documentation does.

Both sides get the same network with the same initial weights. lightly's side is its example `pytorch/simclr.py`: one
pass per view through the network, LightlyDataset and torch's DataLoader, one picture after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import selftaught.encoders  # it goes before lightly, which imports torchvision

# isort: split
import numpy as np
import torch
from lightly.data import LightlyDataset
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from _peer import PeerSimCLR
from selftaught import bundle
from selftaught.batch import Batch
from selftaught.data import open_data
from selftaught.data.images import ImageSource
from selftaught.encoders import Encoder, EncoderConfig
from selftaught.recipe import Recipe
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.order import Order, batches
from selftaught.workflow.plan import Request, build_task, resolve
from selftaught.workflow.prepare import fetcher


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, 3, 32, 32] and labels int64 [N] of FOLDER/split/CLASS/*."""
    source = open_data(folder / split, short_side=32)
    assert isinstance(source, ImageSource)
    assert source.labels is not None
    return source.fetch(np.arange(len(source)))["pixels"].numpy(), source.labels


def synthetic(n: int) -> np.ndarray:
    """Smooth random pictures uint8 [n, 3, 32, 32]."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((n, 3, 8, 8), dtype=np.float32))
    smooth = nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8).numpy()


def source_of(pixels: np.ndarray) -> ImageSource:
    """The pictures as selftaught reads them."""
    source = open_data(pixels)
    assert isinstance(source, ImageSource)
    return source


def recipe_for(source: ImageSource, encoder: str, batch: int | None, seed: int, settings: Iterable[str] = ()) -> Recipe:
    """selftaught's own recipe for these pictures: its defaults (also a batch of None), and `settings` as `--set` takes."""
    request = Request(
        data="memory",
        pretext="simclr",
        encoder=encoder,
        weights=None,
        steps=1,
        epochs=None,
        minutes=None,
        batch=batch,
        lr=None,
        size=32,
        holdout=0.0,
        seed=seed,
        device="cpu",
        settings=list(settings),
        recipe=None,
    )
    everything = np.arange(len(source)), np.empty(0, np.int64)
    return resolve(request, source, everything, "cpu", Ranks(), lambda line: None).recipe


class Ours:
    """selftaught's training of `recipe`, step by step; `prepare` may change the encoder before training."""

    def __init__(
        self, source: ImageSource, recipe: Recipe, steps: int, prepare: Callable[[Encoder], object] = lambda e: None
    ) -> None:
        loop = dataclasses.replace(recipe.train, steps=steps)
        task = build_task(recipe, bundle.modality_from_json(recipe.kind, recipe.modality))
        prepare(task.encoder)
        self.trainer = Trainer(task, loop, Ranks())
        self.modality, self.encoder = task.modality, task.encoder
        self.fetch = fetcher(source, np.arange(len(source)), loop.seed)
        self.order = Order(len(source), loop.batch, loop.seed)

    def batches(self) -> Iterator[Batch]:
        """Batches from where training stands."""
        loop = self.trainer.config
        return batches(self.fetch, self.order, self.trainer.step, loop.steps, loop.workers, self.trainer.device)

    def step(self, batch: Batch) -> None:
        self.trainer.train_step(batch)


class Pictures(Dataset[Any]):
    """What torchvision.datasets.CIFAR10 is: an array in memory, a PIL picture and a label when asked."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.data = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.data[index])
        return (image if self.transform is None else self.transform(image)), 0


class Peer:
    """The training step of lightly's SimCLR example."""

    def __init__(
        self,
        pixels: np.ndarray,
        encoder: Encoder,
        transform: Callable[[Image.Image], Any],
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        batch: int,
        workers: int,
    ) -> None:
        dataset = LightlyDataset.from_torch_dataset(Pictures(pixels), transform=transform)
        self.loader = DataLoader(dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers)
        self.encoder = encoder
        self.model = PeerSimCLR(encoder.model, encoder.width)  # type: ignore[arg-type]
        self.optimizer = optimizer(self.model.parameters())

    def batches(self) -> Iterator[Any]:
        """Batches, epoch after epoch."""
        while True:
            yield from self.loader

    def step(self, batch: Any) -> None:
        self.model(batch[0]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def encoder_of(recipe: Recipe) -> Encoder:
    """A copy of the encoder, with the initial weights, that selftaught trains under `recipe`."""
    config: EncoderConfig = recipe.encoder
    return selftaught.encoders.build(config, selftaught.rng.fold(recipe.train.seed) >> 1)
