"""recommend: what comes next for users of a log, or after items that are named; in the log's own ids."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import bundle
from selftaught.batch import Batch, Tokens
from selftaught.data.events import EventSource
from selftaught.errors import UserError, say, unknown
from selftaught.modality.event import EventModality
from selftaught.train.progress import Meter
from selftaught.workflow.columns import check_out, write_columns
from selftaught.workflow.kinds.events import known_items
from selftaught.workflow.prepare import open_source, pick_device, positive

_AT_ONCE = 1 << 25  # scores held at a time
_BECAUSE = 3  # past events that are named for a recommendation


@dataclass(frozen=True)
class Wanted:
    """user: raw ids of users of the log; none: all of them. items: raw ids of a history, oldest first, in place of a log. like: a
    raw id, whose neighbours are wanted. k: recommendations for each. seen: whether what is in the history may come again.
    because: whether the past events that moved each recommendation most are told."""

    user: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    like: str | None = None
    k: int = 10
    seen: bool = False
    because: bool = False

    def __post_init__(self) -> None:
        positive(k=self.k)
        given = [name for name in ("user", "items", "like") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} are both given; ask for one at a time")
        for name in ("seen", "because"):
            if self.like is not None and getattr(self, name):
                raise _idle(f"--{name}", f"--like {self.like}")


def _idle(what: str, asked: str) -> UserError:
    """The error for what the answer would not depend on."""
    return UserError(f"{what} changes nothing about {asked}; leave one of the two out")


class Recommender:
    """An encoder of histories, on a device, and the catalogue it knows."""

    def __init__(self, run: Path, device: str) -> None:
        loaded = bundle.load(run)
        if not isinstance(loaded.modality, EventModality):
            raise UserError(f"'{run}' is an encoder of {loaded.modality.name} data; recommend needs one of event logs")
        self.modality = loaded.modality
        self.device = torch.device(pick_device(device))
        self.encoder: Any = loaded.encoder.to(self.device)
        self.rows = max(1, min(256, _AT_ONCE // self.modality.vocabulary))
        # Behind no event a mask has a state; without one all items score alike, and the first of them would be recommended.
        self.needs_history = "bidirectional_items" not in self.encoder.abilities

    @torch.inference_mode()
    def scores(self, histories: Tokens) -> Tensor:
        """Of histories [B, L] the scores [B, V] of all items as the next one, float32 on the CPU."""
        histories = Tokens(*(x.to(self.device) for x in histories[:3]))
        found = self.encoder.scores(self.encoder.next(histories))
        return found[:, 1 : len(self.modality.items) + 1].float().cpu()

    def tokens(self, inputs: dict[str, Tensor]) -> Tokens:
        """A batch's histories, the last `size` events of each."""
        rows = len(inputs["length"])
        return self.modality.plain(Batch(inputs, torch.arange(rows), seed=0, step=0))

    def best(self, inputs: dict[str, Tensor], k: int, seen: bool) -> tuple[np.ndarray, np.ndarray]:
        """Items int64 [B, k] (positions in the catalogue; -1: there is no further one) and their scores, best first."""
        found = self.scores(self.tokens(inputs))
        if not seen:
            found = torch.cat([torch.full((len(found), 1), -torch.inf), found], 1)
            found = found.scatter(1, inputs["items"], -torch.inf)[:, 1:]
        value, item = found.sort(dim=1, descending=True, stable=True)
        value, item = value[:, :k], item[:, :k]
        return item.masked_fill(value == -torch.inf, -1).numpy(), value.numpy()

    def because(self, inputs: dict[str, Tensor], item: np.ndarray) -> list[list[tuple[int, float]]]:
        """For each item (a position in the catalogue) of one history [1, L] the past items whose absence lowers its score
        most, and by how much: each is left out once."""
        length = min(int(inputs["length"][0]), self.modality.size)
        events = inputs["items"][0, : int(inputs["length"][0])][-length:]
        left = torch.stack([torch.cat([events[:i], events[i + 1 :]]) for i in range(length)])
        short = {"items": left, "length": torch.full((length,), length - 1)}
        whole = self.scores(self.tokens({"items": events[None], "length": torch.tensor([length])}))
        fall = torch.cat([whole - self.scores(self.tokens(part)) for part in _parts(short, self.rows)])
        out = []
        for column in item.tolist():
            order = fall[:, column].argsort(descending=True, stable=True)[:_BECAUSE].tolist()
            out.append([(int(events[i]) - 1, float(fall[i, column])) for i in order if fall[i, column] > 0])
        return out

    def like(self, raw: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The items whose embeddings have the largest cosine with that of a raw id, and the cosines; itself left out."""
        position = int(self.modality.ids([raw])[0]) - 1
        if position < 0:
            raise unknown("item", raw, self.modality.items)
        table = self.encoder.embeddings[1 : len(self.modality.items) + 1].detach().float().cpu()
        unit = table * table.square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt()
        cosine = unit @ unit[position]
        cosine[position] = -torch.inf
        value, item = cosine.sort(descending=True, stable=True)
        k = min(k, len(item) - 1)
        return item[:k].numpy(), value[:k].numpy()


def _parts(inputs: dict[str, Tensor], rows: int) -> list[dict[str, Tensor]]:
    count = -(-len(inputs["length"]) // rows)
    return [
        dict(zip(inputs, part, strict=True))
        for part in zip(*(x.tensor_split(count) for x in inputs.values()), strict=True)
    ]


def recommend(run: Path, data: Any, wanted: Wanted, out: Path | None, device: str, quiet: bool) -> list[dict[str, Any]]:
    """Rows (user, rank, item, score, because) for each user that was asked for; written to `out` where it is named."""
    if out is not None:
        check_out(out)
    if data is not None and (wanted.like is not None or wanted.items):
        raise _idle("a log", "--items" if wanted.items else f"--like {wanted.like}")
    model = Recommender(run, device)
    if wanted.like is not None:
        rows = [_row("", r, i, v, model) for r, (i, v) in enumerate(zip(*model.like(wanted.like, wanted.k)), 1)]
    elif wanted.items:
        for item, known in zip(wanted.items, model.modality.ids(wanted.items).tolist(), strict=True):
            if not known:
                raise unknown("item", item, model.modality.items)
        rows = _of(model, [""], model.modality.inputs([list(wanted.items)]), wanted)
    else:
        if data is None:
            raise UserError("name a log whose users are served, or a history with --items ID --items ID, or --like ID")
        rows = _of_users(model, open_source(data, None, quiet), wanted, quiet)
    if out is not None:
        write_columns(out, {name: [row[name] for row in rows] for name in rows[0]} if rows else {})
    return rows


def _of_users(model: Recommender, source: Any, wanted: Wanted, quiet: bool) -> list[dict[str, Any]]:
    if not isinstance(source, EventSource):
        raise UserError(f"recommend serves users of an event log, and this is {source.kind} data")
    asked = source.places(wanted.user) if wanted.user else np.arange(len(source))
    known, rows = known_items(source, model.modality), list[dict[str, Any]]()
    index = asked[_has_known(source, model.modality)[asked]] if model.needs_history else asked
    if len(index) < len(asked) and not quiet:
        say(f"{len(asked) - len(index)} users have no item that the encoder knows; nothing is recommended to them")
    with Meter("recommend", len(index), quiet=quiet) as meter:
        for start in range(0, len(index), model.rows):
            part = index[start : start + model.rows]
            rows += _of(model, [source.names[i] for i in part.tolist()], known.fetch(part), wanted)
            meter.update(start + len(part))
    return rows


def _has_known(source: EventSource, modality: EventModality) -> np.ndarray:
    """Which users have an event with an item of the catalogue, bool [N]."""
    before = np.concatenate([[0], np.cumsum(modality.ids(source.items)[source.item] > 0)])
    return before[source.bounds[:, 1]] > before[source.bounds[:, 0]]


def _of(model: Recommender, users: list[str], inputs: dict[str, Tensor], wanted: Wanted) -> list[dict[str, Any]]:
    rows = []
    items, values = model.best(inputs, wanted.k, wanted.seen)
    for row, user in enumerate(users):
        kept = items[row] >= 0
        chosen = items[row][kept]
        one = {name: x[row : row + 1] for name, x in inputs.items()}
        why = model.because(one, chosen) if wanted.because and int(one["length"][0]) > 1 else [[]] * len(chosen)
        for rank, (item, value, because) in enumerate(zip(chosen, values[row][kept], why, strict=True), 1):
            rows.append(_row(user, rank, item, value, model, because if wanted.because else None))
    return rows


def _row(
    user: str, rank: int, item: Any, value: Any, model: Recommender, because: list[tuple[int, float]] | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {} if user == "" else {"user": user}
    row |= {"rank": rank, "item": model.modality.items[int(item)], "score": float(value)}
    if because is not None:
        row["because"] = ", ".join(f"{model.modality.items[i]} ({fall:+.2f})" for i, fall in because)
    return row
