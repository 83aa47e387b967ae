"""Splits of a log: by hand, and that nothing which is asked for teaches."""

import numpy as np
import pytest

from selftaught.data.events import EventSource
from selftaught.data.protocols import Protocol, split
from selftaught.errors import UserError
from selftaught.settings import from_json

NAMES = ("leave_one_out", "last_n", "global_time", "user_split")


def log(lengths: list[int], item: np.ndarray | None = None) -> EventSource:
    bounds = np.stack([np.cumsum(lengths) - lengths, np.cumsum(lengths)], 1)
    total = int(bounds[-1, 1])
    time = np.concatenate([10.0 * i + np.arange(n) for i, n in enumerate(lengths)])
    item = np.arange(total) % 7 if item is None else item
    names = [f"user {i}" for i in range(len(lengths))]
    hashes = np.arange(len(lengths), dtype=np.uint64)
    return EventSource(names, [str(i) for i in range(7)], bounds, item.astype(np.int32), hashes=hashes, time=time)


def test_leave_one_out_and_last_n_by_hand() -> None:
    source = log([5, 2, 3])
    parts = split(source, Protocol())
    assert parts.train.tolist() == [[0, 3], [5, 7], [7, 8]]
    assert [x.tolist() for x in parts.test] == [[0, 2], [0, 7], [4, 9], [5, 10]]
    assert [x.tolist() for x in parts.valid] == [[0, 2], [0, 7], [3, 8], [4, 9]]
    two = split(source, Protocol("last_n", n=2))
    assert two.train.tolist() == [[0, 1], [5, 7], [7, 10]]
    assert [x.tolist() for x in two.test] == [[0], [0], [3], [5]]


def test_global_time_learns_nothing_of_what_comes_later() -> None:
    source = log([4] * 10)
    parts = split(source, Protocol("global_time", share=0.2))
    assert source.time is not None
    teaches = np.concatenate([source.time[a:b] for a, b in parts.train])
    asked = np.concatenate([source.time[a:b] for a, b in zip(parts.test.stop, parts.test.end)])
    validates = np.concatenate([source.time[a:b] for a, b in zip(parts.valid.stop, parts.valid.end)])
    assert teaches.max() < validates.min() <= validates.max() < asked.min()
    assert len(teaches) + len(validates) + len(asked) == 40
    assert (parts.test.begin == parts.test.stop).any(), "users who are new after the instant are asked about too"


def test_user_split_is_of_users_and_a_function_of_their_names() -> None:
    source = log([4] * 200)
    parts = split(source, Protocol("user_split", share=0.2))
    taught = parts.train[:, 1] > parts.train[:, 0]
    assert not taught[parts.test.user].any()
    assert not taught[parts.valid.user].any()
    assert 20 < len(parts.test.user) < 60
    fewer = split(source.subset(np.arange(100)), Protocol("user_split", share=0.2))
    assert fewer.test.user.tolist() == [u for u in parts.test.user.tolist() if u < 100]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_changes_nothing_that_teaches(name: str) -> None:
    protocol = Protocol(name, n=2)  # type: ignore[arg-type]
    source = log([6, 3, 9, 1, 5] * 20)
    parts = split(source, protocol)
    asked = np.concatenate([np.arange(a, b) for a, b in zip(parts.test.stop, parts.test.end)])
    taught = np.concatenate([np.arange(a, b) for a, b in parts.train])
    validates = np.concatenate([np.arange(a, b) for a, b in zip(parts.valid.stop, parts.valid.end)])
    assert len(asked)
    assert not np.intersect1d(asked, taught).size
    assert not np.intersect1d(asked, validates).size
    assert not np.intersect1d(validates, taught).size
    changed = source.item.copy()
    changed[asked] = (changed[asked] + 1) % 7
    again = split(log([6, 3, 9, 1, 5] * 20, changed), protocol)
    assert (again.train == parts.train).all()
    assert (changed[taught] == source.item[taught]).all()


def test_bad_protocols_are_one_line() -> None:
    with pytest.raises(UserError, match=r"event\.split.*leave_one_out"):
        from_json(Protocol, {"split": "leave-one-out"}, "event")
    with pytest.raises(UserError, match=r"event\.n"):
        Protocol("last_n", n=0)
    with pytest.raises(UserError, match=r"event\.share"):
        Protocol("user_split", share=0.5)
    timeless = log([3, 3])
    timeless.time = None
    with pytest.raises(UserError, match="needs times"):
        split(timeless, Protocol("global_time"))
