"""How the events of a log are divided into what teaches and what is asked, by names that are stored with every figure."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from selftaught import rng
from selftaught.data.events import EventSource
from selftaught.data.ragged import inside
from selftaught.data.source import content_hash
from selftaught.errors import UserError

Name = Literal["leave_one_out", "last_n", "global_time", "user_split"]
_USERS = 0x55736572  # "User": keeps this split apart from every other use of a hash


@dataclass(frozen=True)
class Protocol:
    """split: leave_one_out: each user's last event is tested, the one before validates, the rest teaches. last_n: the same with
    the last n and the n before. global_time: what happened after an instant is tested, what happened in as long a share of the
    events before it validates, what came earlier teaches; so nothing is learned from the future. user_split: a share of the
    users teach nothing, and the last event of each is asked; as many others validate.

    share: of the events (global_time) or users (user_split). seen: whether items of the history are "filtered", neither ranked
    nor asked for, or "kept".
    """

    split: Name = "leave_one_out"
    n: int = 1
    share: float = 0.1
    seen: Literal["filtered", "kept"] = "filtered"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"setting 'event.n' is {self.n}; it must be 1 or more")
        if not 0 < self.share < 0.5:
            raise UserError(f"setting 'event.share' is {self.share:g}; it must be above 0 and below 0.5")

    def describe(self) -> dict[str, Any]:
        """What a figure is to be read with."""
        more: dict[str, dict[str, Any]] = {
            "last_n": {"n": self.n},
            "global_time": {"share": self.share},
            "user_split": {"share": self.share},
        }
        return {
            "split": self.split,
            **more.get(self.split, {}),
            "seen_items": self.seen,
            "candidates": "full catalogue",
            "ties": "at their expectation over all orders",
        }


class Cases(NamedTuple):
    """Questions, int64 [C] each: whose; the history is [begin, stop), what came next [stop, end), places in the log's arrays."""

    user: np.ndarray
    begin: np.ndarray
    stop: np.ndarray
    end: np.ndarray


class Parts(NamedTuple):
    """train: int64 [N, 2], the events of each user that teach (none where both ends are equal)."""

    train: np.ndarray
    valid: Cases
    test: Cases


def split(source: EventSource, protocol: Protocol) -> Parts:
    """Divide a log. No event that is asked for in `valid` or `test` teaches, and `test`'s are asked for nowhere else."""
    begin, end = source.bounds.T
    everyone = np.arange(len(source))
    if protocol.split in ("leave_one_out", "last_n"):
        n = 1 if protocol.split == "leave_one_out" else protocol.n
        enough = end - begin >= 2 * n + 1  # others only teach
        train = np.stack([begin, np.where(enough, end - 2 * n, end)], 1)
        who = everyone[enough]
        b, e = begin[who], end[who]
        return Parts(train, Cases(who, b, e - 2 * n, e - n), Cases(who, b, e - n, e))
    if protocol.split == "user_split":
        names = torch.tensor([content_hash(name.encode()) - 2**63 for name in source.names])
        draw = rng.uniform(rng.fold(0, _USERS), names, 1)[:, 0].numpy()
        tested, validates = draw < protocol.share, (draw >= protocol.share) & (draw < 2 * protocol.share)
        train = np.stack([begin, np.where(tested | validates, begin, end)], 1)
        cases = []
        for side in (validates, tested):
            who = everyone[side & (end - begin >= 2)]
            cases.append(Cases(who, begin[who], end[who] - 1, end[who]))
        return Parts(train, *cases)
    return _by_time(source, protocol.share)


def _by_time(source: EventSource, share: float) -> Parts:
    if source.time is None:
        raise UserError(
            "protocol global_time needs times, and this log has none; name time=COLUMN or use leave_one_out"
        )
    begin, end = source.bounds.T
    first, second = np.quantile(source.time[inside(source.bounds)[0]], [1 - 2 * share, 1 - share])
    # How many of each user's events, which are sorted, lie before an instant.
    middle, last = (begin + _before(source, instant) for instant in (first, second))
    everyone = np.arange(len(source))
    asked, tested = middle < last, last < end
    valid = Cases(everyone[asked], begin[asked], middle[asked], last[asked])
    return Parts(np.stack([begin, middle], 1), valid, Cases(everyone[tested], begin[tested], last[tested], end[tested]))


def _before(source: EventSource, instant: float) -> np.ndarray:
    assert source.time is not None
    early = np.concatenate([[0], np.cumsum(source.time < instant)])
    return early[source.bounds[:, 1]] - early[source.bounds[:, 0]]
