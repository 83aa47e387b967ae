"""What is in a log of events, before any training."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from selftaught.data.events import EventSource
from selftaught.data.ragged import inside

_GAP = 1800.0  # seconds without an event that end a session
_HISTORIES, _LENGTH = 100, 3  # users needed, and events of each, before a task can learn what comes next


@dataclass(frozen=True)
class EventAudit:
    """What `audit_events` found. a_user, an_item: (least, median, most) events. density: share of the pairs of user and item that
    occur. head: share of the events that the most popular 1 % and 10 % of the items take. gini: of events over items, 0 where all
    are alike. span: first and last time, days between. ties: events at the very time of the user's event before. repeats:
    events with an item that the user had before. single: items with one event. late: items that occur in the last tenth
    of the time alone. sessions: visits, ended by half an hour without an event. usable: users with three events or more. shared:
    users of the other log with the very same events."""

    users: int
    items: int
    events: int
    a_user: tuple[int, int, int]
    an_item: tuple[int, int, int]
    density: float
    head: tuple[float, float]
    gini: float
    span: tuple[float, float, float] | None
    ties: int | None
    repeats: int
    single: int
    late: int | None
    sessions: int | None
    usable: int
    skipped_count: int
    skipped: list[tuple[str, str]]
    shared: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"kind": "event", **dataclasses.asdict(self)}

    def lines(self) -> list[tuple[str, str]]:
        """For people: (name, words)."""
        tail = f"1 % of the items take {self.head[0]:.0%} of the events, 10 % {self.head[1]:.0%} (Gini {self.gini:.2f})"
        out = [
            ("users", f"{self.users}, of {self.a_user[0]} to {self.a_user[2]} events (median {self.a_user[1]})"),
            ("items", f"{self.items}, of {self.an_item[0]} to {self.an_item[2]} events (median {self.an_item[1]})"),
            ("events", f"{self.events}; {self.density:.3%} of all pairs of user and item; {self.repeats} repeats"),
            ("long tail", f"{tail}; {self.single} have one"),
        ]
        if self.span is None:
            out.append(("times", "none: the order of the file is taken for that of time"))
        else:
            first, last = (np.datetime64(int(x), "s") if 1e8 < x < 1e11 else f"{x:g}" for x in self.span[:2])
            out.append(("times", f"{first} to {last}, {self.span[2]:.0f} days; {self.ties} ties"))
            out.append(("sessions", f"{self.sessions}, ended by half an hour without an event"))
            out.append(("cold", f"{self.late} items occur in the last tenth of the time alone"))
        out.append(("left out", f"{self.skipped_count}" + "".join(f"\n{n}: {r}" for n, r in self.skipped[:10])))
        if self.shared is not None:
            out.append(("leakage", f"{self.shared} users of the other log have the same events here"))
        return out


def audit_events(source: EventSource, other: EventSource | None) -> EventAudit:
    """Count what is there; other: a second log in which the same users are looked for."""
    lengths = source.lengths
    at, row = inside(source.bounds)
    item = source.item[at]
    count = np.sort(np.bincount(item, minlength=len(source.items)))[::-1]
    pairs = len(np.unique(row.astype(np.int64) * len(source.items) + item))
    total, n = int(count.sum()), len(count)
    top = [float(count[: max(1, round(n * share))].sum() / total) for share in (0.01, 0.1)]
    gini = float((2 * np.arange(n, 0, -1) - n - 1) @ count / (n * total))
    timed = _timed(source.time[at], row, item, len(source.items)) if source.time is not None else {}
    return EventAudit(
        users=len(source),
        items=n,
        events=total,
        a_user=_spread(lengths),
        an_item=_spread(count),
        density=pairs / (len(source) * n),
        head=(top[0], top[1]),
        gini=gini,
        span=timed.get("span"),
        ties=timed.get("ties"),
        repeats=total - pairs,
        single=int((count == 1).sum()),
        late=timed.get("late"),
        sessions=timed.get("sessions"),
        usable=int((lengths >= _LENGTH).sum()),
        skipped_count=source.left_out,
        skipped=[(s.name, s.reason) for s in source.skipped],
        shared=None if other is None else int(np.isin(source.hashes, other.hashes).sum()),
    )


def _spread(count: np.ndarray) -> tuple[int, int, int]:
    return int(count.min()), int(np.median(count)), int(count.max())


def _timed(time: np.ndarray, row: np.ndarray, item: np.ndarray, items: int) -> dict[str, Any]:
    first, last = float(time.min()), float(time.max())
    same, gap = np.diff(row) == 0, np.diff(time)
    early = np.bincount(item[time <= np.quantile(time, 0.9)], minlength=items)
    return {
        "span": (first, last, (last - first) / 86400),
        "ties": int((same & (gap == 0)).sum()),
        "late": int(((early == 0) & (np.bincount(item, minlength=items) > 0)).sum()),
        "sessions": int(len(row) - (same & (gap <= _GAP)).sum()),
    }


def event_offers(found: EventAudit) -> dict[str, tuple[bool, str]]:
    """What a log offers to pretext tasks: (whether, why)."""
    enough = found.usable >= _HISTORIES
    return {"histories": (enough, f"{found.usable} users have {_LENGTH} events or more; {_HISTORIES} are needed")}
