"""Every pretext task on real data small enough for a test: scikit-learn's 8 x 8 digits, enlarged to 16 px; docstrings.

And histories of a small machine, for tasks on logs of events."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from selftaught import rng
from selftaught.batch import Batch
from selftaught.data import Source, open_data
from selftaught.data.events import EventSource
from selftaught.data.ragged import inside
from selftaught.data.texts import from_list
from selftaught.data.tokens import tokenized
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.graphs import SIZES as GRAPHS
from selftaught.encoders.sequences import SIZES as SEQUENCES
from selftaught.encoders.transformers_sizes import SIZES, describe
from selftaught.modality.event import Attributes, EventModality, Graph
from selftaught.modality.image import ImageModality
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.pretext import Pretext, find
from selftaught.workflow.kinds.events import Events
from tests.modality.corpus import english

SIZE, LENGTH = 16, 32
WIDE = {"hidden", "out", "slices", "prototypes"}
FEW = {"clusters": 16}  # of settings that may not exceed the samples of these tests' batches
WIDEST = 512  # of a head: the papers' widths would cost hundreds of times the encoders of these tests


class Digits(NamedTuple):
    """Samples of a kind, and which of them teach and test."""

    source: Source
    train: np.ndarray
    test: np.ndarray


@functools.cache
def small_digits() -> Digits:
    found = load_digits()
    images = torch.from_numpy(found.images)[:, None] * (255 / 16)
    pixels = torch.nn.functional.interpolate(images, size=SIZE, mode="bicubic").clamp(0, 255).to(torch.uint8)
    source = open_data((pixels.numpy(), found.target.astype(np.int64)))
    order = rng.permutation(len(source), 0)
    return Digits(source, np.sort(order[:1300]), np.sort(order[1300:]))


@pytest.fixture(scope="session")
def digits() -> Digits:
    return small_digits()


@functools.cache
def tinted_digits() -> Digits:
    """The digits in colour: one of three hues by their shape, paler or stronger, on a dark ground of its complement."""
    grey, train, test = small_digits()
    assert grey.labels is not None
    value = grey.fetch(np.arange(len(grey)))["pixels"].float() / 255
    u = rng.uniform(8, torch.arange(len(grey)), 2)
    angle = (torch.from_numpy(grey.labels) % 3 * 4 / 3 + 0.8 * (u[:, 0] - 0.5)) * (np.pi / 2)
    hue = torch.stack([torch.cos(angle + turn) for turn in (0.0, 2.1, 4.2)], 1)[:, :, None, None]
    pixels = 0.15 + 0.6 * value + hue * (value - 0.4) * (0.15 + 0.15 * u[:, 1, None, None, None])
    source = open_data(((pixels.clamp(0, 1) * 255).to(torch.uint8).numpy(), grey.labels))
    return Digits(source, train, test)


@functools.cache
def text_modality() -> TextModality:
    return TextModality(Tokenizer.train([text for text, _ in english()], "wordpiece", 1000), LENGTH)


@functools.cache
def docstrings() -> Digits:
    mixed = [
        english()[i] for i in rng.permutation(len(english()), 1)
    ]  # modules are not in order: any part has them all
    source = from_list([text for text, _ in mixed], [module for _, module in mixed])
    tokens = tokenized(source, text_modality().tokenizer, LENGTH - 2, None, lambda done, total: None)
    order = rng.permutation(len(source), 0)
    return Digits(tokens, np.sort(order[: len(order) * 3 // 4]), np.sort(order[len(order) * 3 // 4 :]))


ITEMS, HISTORY = 40, 12


@functools.cache
def walks() -> Digits:
    """Histories that a small machine makes: after item i comes, mostly, i + 1 or i + 2. No real log is small enough."""
    users, longest = 600, 20
    u = rng.uniform(7, torch.arange(users), longest + 2).numpy()
    lengths = 4 + (u[:, -1] * (longest - 3)).astype(int)
    item = np.zeros((users, longest), np.int64)
    item[:, 0] = u[:, -2] * ITEMS
    for t in range(1, longest):
        jump = np.where(u[:, t] < 0.45, 1, np.where(u[:, t] < 0.9, 2, u[:, t] * 1e4 % ITEMS)).astype(int)
        item[:, t] = (item[:, t - 1] + jump) % ITEMS
    bounds = np.stack([lengths.cumsum() - lengths, lengths.cumsum()], 1)
    flat = item[np.arange(longest) < lengths[:, None]].astype(np.int32)
    names, raw = [f"u{i}" for i in range(users)], [f"i{i}" for i in range(ITEMS)]
    source = EventSource(names, raw, bounds, flat, hashes=np.arange(users, dtype=np.uint64))
    return Digits(source, np.arange(450), np.arange(450, users))


@functools.cache
def walked() -> Graph:
    """The graph of the histories that teach."""
    source, train, _ = walks()
    at, history = inside(source.bounds[train])  # type: ignore[attr-defined]
    item = torch.from_numpy(source.item[at].astype(np.int64)) + 1  # type: ignore[attr-defined]
    return Graph.of(torch.from_numpy(history), item, len(train), ITEMS)


@functools.cache
def attributed() -> Attributes:
    """Each item has one of eight attributes by its tens, and one of two by whether it is even."""
    items = torch.arange(1, ITEMS + 1)
    return Attributes.of(items.repeat(2), torch.cat([(items - 1) // 5, 8 + items % 2]), ITEMS + 2, 10)


def data_of(name: str) -> Digits:
    """Data that a task works on, real but for histories."""
    kinds = find(name).kinds
    if "colour" in find(name).wants:
        return tinted_digits()
    return docstrings() if kinds == {"text"} else walks() if kinds == {"event"} else small_digits()


def batch_of(name: str, n: int = 24) -> Batch:
    source, train, _ = data_of(name)
    index = train[:n]
    labels = torch.arange(n) % 3 if source.labels is None else torch.from_numpy(source.labels[index])
    return Batch(source.fetch(index), torch.from_numpy(index), seed=3, step=5, labels=labels)


@pytest.fixture
def batch(request: pytest.FixtureRequest) -> Batch:
    """A batch for the task that the test is about, of pictures where it names none."""
    known = getattr(request.node, "callspec", None)
    return batch_of(known.params.get("name", "simclr") if known else "simclr")


def make(name: str, encoder: str | None = None, seed: int = 0, **settings: object) -> Pretext:
    kind = find(name)
    if kind.kinds == {"event"}:
        return make_event(name, seed, **settings)
    text = kind.kinds == {"text"}
    if text:
        architecture = "gpt2_nano" if "causal" in kind.needs else "bert_tiny"
        architecture = encoder if encoder in SIZES else architecture
        options, size = describe(architecture), text_modality().tokenizer.vocabulary
        config = EncoderConfig(architecture, LENGTH, 0, options=options, vocabulary=size)
    else:
        channels = 3 if "colour" in kind.wants else 1
        architecture = encoder or ("vit_micro" if kind.needs & {"keep", "hide"} else "resnet10_x0.25")
        config = EncoderConfig(architecture, SIZE, channels)
        if "causal_pixels" in kind.needs:  # digits have 8 x 8 pixels of 17 levels
            options = {"side": 8, "levels": 16, "mean": [0.3], "std": [0.37]}
            config = EncoderConfig("igpt_nano", SIZE, 1, options=options)
        pictures = ImageModality(SIZE, channels, (0.3,) * channels, (0.37,) * channels)
    modality = text_modality() if text else pictures
    wide = {f.name: WIDEST for f in dataclasses.fields(kind.Config) if f.name in WIDE and (f.default or 0) > WIDEST}
    wide |= {f.name: FEW[f.name] for f in dataclasses.fields(kind.Config) if f.name in FEW}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(build(config, seed), modality, kind.Config(**{**wide, **settings}))


def make_event(name: str, seed: int, **settings: object) -> Pretext:
    kind, modality = find(name), EventModality(walks().source.items, HISTORY, {})  # type: ignore[attr-defined]
    modality.graph, modality.attributes = walked, attributed
    architecture = Events().choose(HISTORY, "cpu", kind.needs)
    options = {**SEQUENCES, **GRAPHS}[architecture]
    if "features" in options:
        options = {**options, "features": ITEMS}
    config = EncoderConfig(architecture, HISTORY, 0, options=options, vocabulary=modality.vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder: Any = build(config, seed)
        if "item_words" in kind.needs:  # each item is known by a word of its own
            encoder.know(torch.eye(ITEMS + 2)[:, 1:-1] * ITEMS**0.5)
        return kind(encoder, modality, kind.Config(**settings))


@pytest.fixture
def task() -> Callable[..., Pretext]:
    return make
