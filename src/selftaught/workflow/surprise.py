"""surprise: which events of a log were least to be expected, given the others of the same history."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import bundle
from selftaught.batch import Tokens
from selftaught.data.events import EventSource
from selftaught.data.ragged import within
from selftaught.errors import UserError, say
from selftaught.modality.event import EventModality
from selftaught.train.progress import Meter
from selftaught.workflow.columns import check_out, write_columns
from selftaught.workflow.kinds.events import known_items
from selftaught.workflow.prepare import open_source, pick_device, positive

_AT_ONCE = 1 << 24  # numbers held at a time


@dataclass(frozen=True)
class Window:
    """Events [begin, end) of one user, of which those from `first` on are measured; places in a log's array."""

    user: int
    begin: int
    first: int
    end: int


def windows(bounds: np.ndarray, size: int, masked: bool) -> Iterator[Window]:
    """Each event once: behind all that lies before it, half of `size` events at least where there are more; with `masked` amid as
    many on both sides. Without, the first event of a history has nothing before it, and is not measured."""
    for user, (begin, end) in enumerate(bounds.tolist()):
        if masked:
            for at in range(begin, end) if end - begin > 1 else ():
                low = max(begin, min(at - size // 2, end - size))
                yield Window(user, low, at, min(end, low + size))
            continue
        first = begin + 1
        while first < end:
            low = begin if first == begin + 1 else first - (size + 1) // 2
            high = min(end, low + size + 1)
            yield Window(user, low, first, high)
            first = high


def windows_at_once(vocabulary: int, size: int, width: int, masked: bool) -> int:
    """Windows that go through the network together. Each has scores of the events that it measures, one where they are `masked`,
    and of all its events hidden states, four times as wide inside a layer."""
    return max(1, _AT_ONCE // max(vocabulary * (1 if masked else size), size * 4 * width))


class Surprise:
    """An encoder of histories and the log it reads."""

    def __init__(self, run: Path, source: EventSource, device: str) -> None:
        loaded = bundle.load(run)
        if not isinstance(loaded.modality, EventModality):
            raise UserError(f"'{run}' is an encoder of {loaded.modality.name} data; surprise needs one of event logs")
        self.modality, self.source = loaded.modality, known_items(source, loaded.modality)
        self.device = torch.device(pick_device(device))
        self.encoder: Any = loaded.encoder.to(self.device).eval()
        if not {"causal_items", "bidirectional_items"} & self.encoder.abilities:
            raise UserError(
                f"'{self.encoder.config.name}' reads histories as sets, which say nothing of an event's place; use an encoder "
                "of next_item, cl4srec, two_tower or masked_item"
            )
        self.masked = "bidirectional_items" in self.encoder.abilities
        self.code = torch.from_numpy(self.modality.ids(source.items)[source.item])

    def measured(self, chosen: list[Window]) -> tuple[np.ndarray, Tensor, Tensor]:
        """Of the events that some windows measure their places int64 [n], -log p in nats [n] (NaN of an item that is not in the
        catalogue), and the likeliest item's position [n]."""
        width = max(w.end - w.begin for w in chosen)
        at = torch.tensor([w.begin for w in chosen])[:, None] + torch.arange(width)
        there = at < torch.tensor([w.end for w in chosen])[:, None]
        ids = self.code[at.where(there, 0)].masked_fill(~there, 0)
        first = torch.tensor([w.first for w in chosen])[:, None]
        if self.masked:
            asked = at == first
            seen = ids.masked_fill(asked, self.modality.mask)
            hidden = self._tokens(seen, there)[asked]
        else:
            asked = there & (at >= first)
            hidden = self._tokens(ids[:, :-1], there[:, 1:])[asked[:, 1:]]
        target = ids[asked].to(self.device)
        scores = self.encoder.scores(hidden).float().log_softmax(1)
        found = -scores.gather(1, target[:, None])[:, 0]
        found = found.masked_fill(target == 0, torch.nan)
        return at[asked].numpy(), found.cpu(), scores[:, 1:-1].argmax(1).cpu()

    def _tokens(self, ids: Tensor, valid: Tensor) -> Tensor:
        """States of events; those with items that are not in the catalogue are passed over."""
        real = valid & (ids > 0)
        order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
        packed = torch.arange(ids.shape[1]) < real.sum(1, keepdim=True)
        x = ids.gather(1, order).masked_fill(~packed, 0).to(self.device)
        tokens = self.encoder(Tokens(x, packed.to(self.device), packed.to(self.device))).tokens
        # An event that is passed over leaves the state of the one before it; with none before it, nothing is known.
        last = real.cumsum(1).to(self.device) - 1
        states = tokens.gather(1, last.clamp_min(0)[:, :, None].expand(-1, -1, tokens.shape[2]))
        return states * (last >= 0)[:, :, None]


@torch.inference_mode()
def surprise(
    run: Path, data: Any, user: tuple[str, ...], k: int, by_user: bool, out: Path | None, device: str, quiet: bool
) -> list[dict[str, Any]]:
    """The k most surprising events, or users by the mean of theirs; all of them where they are written to `out`."""
    positive(k=k)
    if out is not None:
        check_out(out)
    source = open_source(data, None, quiet)
    if not isinstance(source, EventSource):
        raise UserError(f"surprise measures events of a log, and this is {source.kind} data")
    if user:
        source = source.subset(source.places(user))
    model = Surprise(run, source, device)
    size = model.modality.size
    step = windows_at_once(model.modality.vocabulary, size, model.encoder.width, model.masked)
    chosen = list(windows(source.bounds, size, model.masked))
    if not chosen:
        raise UserError(f"'{data}' has no user with two events, so none has anything to be expected from")
    found = []
    with Meter("surprise", len(chosen), quiet=quiet) as meter:
        for start in range(0, len(chosen), step):
            found.append(model.measured(chosen[start : start + step]))
            meter.update(min(len(chosen), start + step))
    at, value = np.concatenate([x[0] for x in found]), torch.cat([x[1] for x in found]).numpy()
    likeliest = torch.cat([x[2] for x in found]).numpy()
    unmeasured = int(np.isnan(value).sum())
    if unmeasured and not quiet:
        say(f"{unmeasured} events with items that the encoder does not know are not measured")
    at, value, likeliest = (x[~np.isnan(value)] for x in (at, value, likeliest))
    rows = _users(source, at, value) if by_user else _events(model, source, at, value, likeliest)
    if out is not None:
        write_columns(out, {name: [row[name] for row in rows] for name in rows[0]} if rows else {})
    return rows if out is not None else rows[:k]


def _owner(source: EventSource, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whose events lie at these places, and the how many-th of his each is, from 1."""
    counts = source.lengths
    place = np.repeat(source.bounds[:, 0], counts) + within(counts)
    order = np.argsort(place, kind="stable")
    where = order[np.searchsorted(place[order], at)]
    return np.repeat(np.arange(len(source)), counts)[where], within(counts)[where] + 1


def _events(
    model: Surprise, source: EventSource, at: np.ndarray, value: np.ndarray, likeliest: np.ndarray
) -> list[dict[str, Any]]:
    owner, nth = _owner(source, at)
    dated = source.time is not None and 1e8 < np.median(source.time[at]) < 1e11  # seconds since 1970
    rows = []
    for i in np.argsort(-value, kind="stable").tolist():
        row: dict[str, Any] = {"user": source.names[int(owner[i])], "event": int(nth[i])}
        if source.time is not None:
            time = float(source.time[at[i]])
            row["time"] = str(np.datetime64(int(time), "s")) if dated else repr(time).removesuffix(".0")
        row |= {"item": source.items[int(source.item[at[i]])], "surprise": float(value[i])}
        rows.append(row | {"likeliest": model.modality.items[int(likeliest[i])]})
    return rows


def _users(source: EventSource, at: np.ndarray, value: np.ndarray) -> list[dict[str, Any]]:
    owner, _ = _owner(source, at)
    count = np.bincount(owner, minlength=len(source))
    mean = np.bincount(owner, value, len(source)) / np.maximum(1, count)
    order = [i for i in np.argsort(-mean, kind="stable").tolist() if count[i]]
    return [{"user": source.names[i], "events": int(count[i]), "surprise": float(mean[i])} for i in order]
