"""tasks: the pretext tasks there are, and what a step of each costs beside a supervised one.

Arithmetic is counted, so machine and load do not matter.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from selftaught import rng
from selftaught.data import Source, open_data
from selftaught.data.events import EventSource
from selftaught.data.item_table import ItemFacts
from selftaught.errors import UserError
from selftaught.pretext import Pretext, available, find
from selftaught.pretext.base import able
from selftaught.train.distributed import Ranks
from selftaught.workflow.kinds import kind_called
from selftaught.workflow.plan import Request, build_task, resolve
from selftaught.workflow.prepare import fetcher

_SAMPLES, _SIDE, _CLASSES = 64, 32, 10
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def tasks(cost: bool) -> list[dict[str, str]]:
    """A row for each task, by name; cost: with what a step costs."""
    rows = []
    for name in sorted(available()):
        task = find(name)
        encoder = able(task.needs).partition(",")[0] if task.needs else "any encoder"
        data = ", ".join(sorted(task.kinds))
        row = {"name": name, "family": task.family, "data": data, "needs": encoder}
        if task.supervised:
            row["needs"] += ", and labels of some samples"
        if cost:
            found = relative_cost(name)
            row["cost"] = "–" if found is None else f"{found:.1f}"
        rows.append({**row, "paper": task.paper})
    return rows


def relative_cost(name: str) -> float | None:
    """Multiplications of a training step of the task called `name`, forward and backward, in those of a supervised step
    (encoder, linear classifier, cross-entropy) on as many samples with the same encoder; None where it cannot be built on
    samples made of chance. With the encoder and settings that a CPU gets, on pictures of 32 px, short texts, histories of up
    to 20 events; what is done once for all (views, masks, graphs) is not arithmetic of networks, and not counted.
    """
    kind = sorted(find(name).kinds)[0]
    try:
        task, batch = _made(name, kind)
    except UserError:
        return None
    task.train()
    own = _multiplications(lambda: task(batch).loss)
    head = nn.Linear(task.encoder.width, _CLASSES)
    target = torch.arange(len(batch)) % _CLASSES
    plain = task.modality.plain(batch)
    supervised = _multiplications(lambda: F.cross_entropy(head(task.encoder(plain).pooled.float()), target))
    return own / supervised


def _made(name: str, kind: str) -> tuple[Pretext, Any]:
    source = _samples(kind)
    request = Request(data="", pretext=name, steps=1, device="cpu")
    split = kind_called(kind).split(source, request.holdout)
    recipe, modality, training = resolve(request, source, split, "cpu", Ranks(), lambda line: None, quiet=True)
    task = build_task(recipe, modality)
    fetch = fetcher(training.source, training.train, 0, labels=task.supervised)
    return task, fetch(np.arange(min(16, len(training.train))), 0)


def _multiplications(loss: Any) -> int:
    """Of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return counter.get_total_flops()


@functools.cache
def _samples(kind: str) -> Source:
    """A few samples of a kind, made of chance."""
    u = rng.uniform(1, torch.arange(_SAMPLES), 3 * _SIDE**2)
    if kind == "image":
        pixels = (u * 256).to(torch.uint8).view(_SAMPLES, 3, _SIDE, _SIDE)
        return open_data((pixels.permute(0, 2, 3, 1).numpy(), np.arange(_SAMPLES) % _CLASSES))
    if kind == "text":
        return open_data(
            [". ".join(" ".join(_WORDS[int(x * 10)] for x in row[i : i + 8]) for i in (0, 8, 16)) for row in u]
        )
    lengths = 5 + (u[:, 0] * 16).long().numpy()
    ends = lengths.cumsum()
    items = (u[:, 1:21] * 100).int().numpy()
    item = items[np.arange(20) < lengths[:, None]]
    names = [f"user {i}" for i in range(_SAMPLES)], [f"item {i}" for i in range(100)]
    code = np.arange(100)
    about = ItemFacts([f"{_WORDS[i % 10]} {_WORDS[i // 10]}" for i in code], code, code % 10, list(_WORDS))
    bounds, hashes = np.stack([ends - lengths, ends], 1), np.arange(_SAMPLES, dtype=np.uint64)
    return EventSource(*names, bounds, item, hashes=hashes, about=about)
