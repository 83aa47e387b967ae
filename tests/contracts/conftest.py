"""Every pretext task on real pictures small enough for a test: scikit-learn's 8 x 8 digits, enlarged to 16 px."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from selftaught import rng
from selftaught.batch import Batch
from selftaught.data import Source, open_data
from selftaught.encoders import EncoderConfig, build
from selftaught.modality.image import ImageModality
from selftaught.pretext import Pretext, find

SIZE = 16


class Digits(NamedTuple):
    source: Source
    train: np.ndarray
    test: np.ndarray


@pytest.fixture(scope="session")
def digits() -> Digits:
    found = load_digits()
    images = torch.from_numpy(found.images)[:, None] * (255 / 16)
    pixels = torch.nn.functional.interpolate(images, size=SIZE, mode="bicubic").clamp(0, 255).to(torch.uint8)
    source = open_data((pixels.numpy(), found.target.astype(np.int64)))
    order = rng.permutation(len(source), 0)
    return Digits(source, np.sort(order[:1300]), np.sort(order[1300:]))


@pytest.fixture
def batch(digits: Digits) -> Batch:
    index = digits.train[:24]
    assert digits.source.labels is not None
    labels = torch.from_numpy(digits.source.labels[index])
    return Batch(digits.source.fetch(index), torch.from_numpy(index), seed=3, step=5, labels=labels)


def make(name: str, encoder: str | None = None, seed: int = 0, **settings: object) -> Pretext:
    kind = find(name)
    chosen = encoder or ("vit_micro" if "keep" in kind.needs else "resnet10_x0.25")
    modality = ImageModality(SIZE, 1, (0.3,), (0.37,))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(build(EncoderConfig(chosen, SIZE, 1), seed), modality, kind.Config(**settings))


@pytest.fixture
def task() -> Callable[..., Pretext]:
    return make
