"""Event logs: a user's history is what is read of him, and a protocol says which of it may teach."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.batch import Seen, Shown
from selftaught.data.event_audit import audit_events, event_offers
from selftaught.data.events import EventSource
from selftaught.data.protocols import Parts, Protocol, split
from selftaught.data.ragged import inside, within
from selftaught.data.source import Source
from selftaught.encoders import EncoderConfig
from selftaught.encoders.graphs import SIZES as GRAPHS
from selftaught.encoders.sequences import SIZES as SEQUENCES
from selftaught.errors import UserError, unknown
from selftaught.modality.event import Attributes, EventModality, Graph
from selftaught.modality.text.spans import Span
from selftaught.settings import from_json, to_json
from selftaught.workflow.item_words import item_vectors, width_of
from selftaught.workflow.kinds.base import Audited, Kind, Reading, Training


class Events(Kind):
    """Users with their events in the order of time."""

    name, unit, noun, evaluation = "event", "events", "users", "ranking"
    default_pretext = "next_item"
    largest_batch = {"cpu": 256, "cuda": 1024}  # noqa: RUF012
    raw_is = "what a user's items have in common with all others' (see ranking.json)"
    unlabelled = "event logs have no classes; evaluate ranks what comes next"

    def pick_size(self, source: EventSource, device: str, needs: frozenset[str]) -> int:
        """The longest history there is, up to 50 events, the papers' choice for sparse logs; up to 1000 of sets of events."""
        return int(np.clip(source.lengths.max(), 8, 1000 if "graph_items" in needs else 50))

    def split(self, source: Source, share: float) -> tuple[np.ndarray, np.ndarray]:
        """All users on both sides: the protocol (event.split) divides events, or leaves out users by itself."""
        everyone = np.arange(len(source))
        return everyone, everyone

    def fit(
        self, source: EventSource, size: int, train: np.ndarray, settings: dict[str, Any], encoder: str
    ) -> EventModality:
        """The catalogue, all items of the log, the protocol, and by what words of items are read (event.words=RUN)."""
        words = settings.get("words")
        protocol = from_json(Protocol, {k: v for k, v in settings.items() if k != "words"}, self.name)
        for name, splits in ("n", ("last_n",)), ("share", ("global_time", "user_split")):
            if name in settings and protocol.split not in splits:
                raise UserError(
                    f"setting 'event.{name}' is {settings[name]}, and {protocol.split} has none; leave it out, or set "
                    f"event.split={' or '.join(splits)}"
                )
        return EventModality(source.items, size, to_json(protocol), None if words is None else str(words))

    def choose(self, size: int, device: str, needs: frozenset[str]) -> str:
        families = {"bidirectional_items": "bert4rec", "graph_items": "lightgcn", "item_words": "tower"}
        family = next((family for need, family in families.items() if need in needs), "sasrec")
        return f"{family}_{'small' if device == 'cpu' else 'base'}"

    def encoder(self, name: str, size: int, source: EventSource, modality: EventModality) -> EncoderConfig:
        known = SEQUENCES | GRAPHS
        if name not in known:
            raise unknown("encoder of event logs", name, known)
        options = known[name]
        if "features" in options:
            options = {**options, "features": width_of(modality.words)}
        elif modality.words is not None:
            raise UserError(
                f"setting 'event.words' is {modality.words}, and encoder '{name}' reads no words of items; leave it out, or use "
                "--pretext two_tower"
            )
        return EncoderConfig(name, size, 0, options=options, vocabulary=modality.vocabulary)

    def fill(self, encoder: Any, modality: EventModality) -> None:
        """What is known of the items."""
        if "item_words" in encoder.abilities:
            assert modality.features is not None, "it is there while pretraining"
            encoder.know(modality.features())

    def base_lr(self, device: str, needs: frozenset[str], encoder: EncoderConfig) -> float:
        """1e-3 at batch 256, that of the papers' code; ten times that for graphs, whose papers take that many more steps."""
        return 1e-2 if "graph_items" in needs else 1e-3

    def training(
        self, source: EventSource, modality: EventModality, train: np.ndarray, held: np.ndarray, quiet: bool
    ) -> Training:
        """Histories that may teach, in pieces in which each event is a target once; held out is the event (or events) that
        validation asks for, behind all that lies before it."""
        parts = parts_of(source, modality)
        bounds, users = pieces(parts.train, modality.size)
        cases = parts.valid
        asked = np.stack([np.maximum(cases.begin, cases.end - modality.size - 1), cases.end], 1)
        known = known_items(source, modality)
        modality.graph = functools.cache(lambda: _graph(source, modality, bounds))
        modality.attributes = functools.cache(lambda: _attributes(source, modality))
        modality.features = functools.cache(lambda: _features(source, modality))
        whole = known.cut(np.concatenate([bounds, asked]), np.concatenate([users, cases.user]))
        new = np.concatenate([np.zeros(len(bounds), np.int64), cases.end - cases.stop])
        if not len(bounds):
            raise UserError(
                f"no user has two events to learn from under the protocol {modality.protocol['split']}; name another with "
                "--set event.split="
            )
        if not len(asked):
            raise UserError(
                f"the protocol {modality.protocol['split']} leaves nothing to validate on; users need more events"
            )
        return Training(whole.asking(new), np.arange(len(bounds)), np.arange(len(bounds), len(whole)))

    def whole(self, source: EventSource, modality: EventModality, quiet: bool) -> Source:
        return known_items(source, modality)

    def reading(self, source: EventSource, modality: EventModality, index: np.ndarray, quiet: bool) -> Reading:
        return Reading(known_items(source, modality), index)

    def raw(self, modality: Any, train: tuple[Any, np.ndarray], test: tuple[Any, np.ndarray]) -> tuple[Tensor, Tensor]:
        raise UserError(self.unlabelled)

    def audit(self, source: EventSource, other: EventSource | None, quiet: bool) -> Audited:
        found = audit_events(source, other)
        return Audited(found.to_json(), event_offers(found), found.lines())

    def facts(self, source: EventSource) -> dict[str, Any]:
        return {"events": int(source.lengths.sum()), "items": len(source.items), "log_hash": source.log_hash}

    def texts(self, modality: EventModality, shown: Shown, rows: int) -> list[list[tuple[str, list[Span]]]]:
        """Raw ids; a hidden one as it is in the log."""
        return [[(seen.name, _spans(modality, seen, row)) for seen in shown.seen] for row in range(rows)]

    def thumbnails(self, source: Source, index: np.ndarray) -> None:
        return None


def _spans(modality: EventModality, seen: Seen, row: int) -> list[Span]:
    out, truth = [], seen.truth or seen.read
    for at in range(int(seen.read.valid[row].sum())):
        hidden = int(seen.read.ids[row, at]) == modality.mask
        code = int(truth.ids[row, at])
        item = "" if code == modality.mask else modality.items[code - 1]
        words = ("[MASK→" + item + "]" if item else "[MASK]") if hidden else item
        out.append(Span(f" {words}", "masked" if hidden else ""))
    return out


def _graph(source: EventSource, modality: EventModality, bounds: np.ndarray) -> Graph:
    """The graph of the histories at `bounds` and the items of a catalogue."""
    at, history = inside(bounds)
    item = modality.ids(source.items)[source.item[at]]
    return Graph.of(torch.from_numpy(history), torch.from_numpy(item), len(bounds), len(modality.items))


def _features(source: EventSource, modality: EventModality) -> Tensor:
    found = item_vectors(source, modality.words)
    table = torch.zeros(modality.vocabulary, found.shape[1])
    table[torch.from_numpy(modality.ids(source.items))] = found
    table[[0, -1]] = 0.0
    return table


def _attributes(source: EventSource, modality: EventModality) -> Attributes | None:
    if source.about is None or not source.about.attributes:
        return None
    ids = modality.ids(source.items)[source.about.item]
    known, attribute = (torch.from_numpy(x[ids > 0]) for x in (ids, source.about.attribute))
    return Attributes.of(known, attribute, modality.vocabulary, len(source.about.attributes))


def parts_of(source: EventSource, modality: EventModality) -> Parts:
    """What of a log teaches, validates and tests under the protocol an encoder was pretrained with."""
    return split(source, from_json(Protocol, modality.protocol, "event"))


def known_items(source: EventSource, modality: EventModality) -> EventSource:
    """The log in the ids of a catalogue; events with other items are left out."""
    return source.renamed(modality.ids(source.items))


def pieces(bounds: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Histories int64 [N, 2] in pieces of at most size + 1 events, of which the first is the last of the piece before: so
    each event but a history's first is a target once. Returns the pieces' bounds and whose they are."""
    targets = np.maximum(0, bounds[:, 1] - bounds[:, 0] - 1)
    counts = -(-targets // size)
    owner = np.repeat(np.arange(len(bounds)), counts)
    nth = within(counts)
    begin = bounds[owner, 0] + nth * targets[owner] // counts[owner]
    end = bounds[owner, 0] + (nth + 1) * targets[owner] // counts[owner] + 1
    return np.stack([begin, end], 1), owner
