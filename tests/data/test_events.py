"""Logs of events in every form, with what is wrong in them counted and listed; sorted, filtered, cached."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selftaught.data import csv_blocks, open_data
from selftaught.data.event_audit import audit_events
from selftaught.data.event_files import find_columns, is_log
from selftaught.data.event_log import in_seconds, times
from selftaught.data.events import EventSource
from selftaught.data.opening import is_events
from selftaught.errors import UserError

LASTFM = Path(__file__).parents[3] / "shared/data/lastfm_s3rec.txt"
ROWS = [
    ("ann", "x", 30, 5),
    ("bob", "y", 10, 1),
    ("ann", "y", 10, 3),
    ("ann", "x", 20, 4),
    ("bob", "z", 10, 2),
    ("cy", "x", 5, 5),
]


def write(path: Path, rows: list[tuple] = ROWS, names: str = "userId,movieId,timestamp,rating") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    separator = "," if path.suffix == ".csv" else "\t"
    lines = [names.replace(",", separator), *(separator.join(map(str, row)) for row in rows)]
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def opened(path: Path | str, **more: object) -> EventSource:
    source = open_data(path, cache=False, **more)  # type: ignore[arg-type]
    assert isinstance(source, EventSource)
    return source


def histories(source: EventSource) -> dict[str, list[str]]:
    return {
        name: [source.items[i] for i in source.item[a:b].tolist()]
        for name, (a, b) in zip(source.names, source.bounds.tolist(), strict=True)
    }


EXPECTED = {"ann": ["y", "x", "x"], "bob": ["y", "z"], "cy": ["x"]}


def test_every_form_gives_the_same(tmp_path: Path) -> None:
    names = ["user_id", "item_id", "timestamp", "rating"]
    columns = list(zip(*ROWS))
    pq.write_table(pa.table(dict(zip(names, map(list, columns)))), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(zip(names, row))) + "\n" for row in ROWS), "utf-8")
    files = [write(tmp_path / "a.csv"), write(tmp_path / "a.tsv"), tmp_path / "a.parquet", tmp_path / "a.jsonl"]
    files.append(write(tmp_path / "a.inter", ROWS, "user_id:token,item_id:token,timestamp:float,rating:float"))
    found = [opened(path) for path in files]
    for source in found:
        assert histories(source) == EXPECTED
        assert source.time is not None
        assert source.time.tolist() == [10, 20, 30, 10, 10, 5]
        assert source.rating is not None
        assert source.rating.tolist() == [3, 4, 5, 1, 2, 5]
        assert source.fingerprint == found[0].fingerprint


def test_the_order_of_the_file_only_breaks_ties(tmp_path: Path) -> None:
    same = opened(write(tmp_path / "a.csv", [ROWS[i] for i in (5, 1, 0, 4, 3, 2)]))
    assert histories(same) == EXPECTED
    other = opened(write(tmp_path / "b.csv", [ROWS[i] for i in (0, 4, 1, 2, 3, 5)]))  # bob's two events have one time
    assert histories(other)["bob"] == ["z", "y"]


def test_without_times_the_order_of_the_file_is_that_of_time(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.csv", [row[:2] for row in ROWS], "user,item"))
    assert source.time is None
    assert histories(source) == {"ann": ["x", "y", "x"], "bob": ["y", "z"], "cy": ["x"]}


def test_sequences(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("1 5 6 7\n10 7 -2\n2 5 5\n", "utf-8")
    assert is_events(path)
    assert histories(opened(path)) == {"1": ["5", "6", "7"], "2": ["5", "5"], "10": ["7", "-2"]}
    (tmp_path / "prose.txt").write_text("1 apple a day\nkeeps 2 doctors away\n", "utf-8")
    assert not is_events(tmp_path / "prose.txt")


@pytest.mark.skipif(not LASTFM.exists(), reason="../shared/data is not here")
def test_lastfm() -> None:
    source = opened(LASTFM)
    assert (len(source), len(source.items), int(source.lengths.sum())) == (1090, 3646, 52551)
    found = audit_events(source, source)
    assert (found.span, found.shared, found.repeats) == (None, 1090, 0)
    assert found.density == pytest.approx(52551 / (1090 * 3646))


def test_columns_are_named_after_the_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", names="who,what,when,stars")
    assert not is_log(path)
    source = opened(f"{path}?user=who&item=what&time=when")
    assert histories(source) == EXPECTED
    assert source.rating is not None, "stars is a usual name"
    with pytest.raises(UserError, match=r"unknown column of .* for user 'whom'; did you mean 'who'\?"):
        opened(f"{path}?user=whom&item=what")
    with pytest.raises(UserError, match=r"add \?user=who&item=COLUMN; it has who, what"):
        opened(f"{path}?user=who")
    with pytest.raises(UserError, match=r"'sort' after . is not known for a log"):
        opened(f"{path}?user=who&item=what&sort=yes")


def test_bad_rows_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    rows: list[tuple] = [(f"u{i % 50}", f"i{i % 30}", i, 3) for i in range(1000)]
    rows[499:499] = [
        ("u1",),
        ("", "i2", 5, 3),
        ("u2", "i3", "yesterday", 3),
        ("u3", "i4", 7, "good"),
        ("u4", "i5", 9, 1, "more"),
    ]
    said: list[str] = []
    path = write(tmp_path / "a.csv", rows)
    path.write_bytes(path.read_bytes().replace(b"u7,i7,7,", b"u\xff,i7,7,"))
    source = opened(path, say=said.append)
    assert int(source.lengths.sum()) == 1000
    reasons = {s.name: s.reason for s in source.skipped}
    assert sorted(reasons.values()) == [
        "1 columns in place of 4", "5 columns in place of 4", "no user, or no valid text", "no user, or no valid text",
        "time that cannot be read",
    ]  # fmt: skip
    assert {"row 9", "row 501", "row 502", "row 503", "row 505"} == set(reasons)
    assert said[-1].startswith("5 of 1005 rows left out, the first row 9")
    with pytest.raises(UserError, match=r"5 of 1005 rows .* more than 0%"):
        opened(path, max_bad=0.001)


def test_a_rating_is_needed_only_where_ratings_are_asked_for(tmp_path: Path) -> None:
    """Its column is taken by its usual name, and may be nearly empty; a cache of the one is not that of the other."""
    path, cache = write(tmp_path / "a.csv", [*ROWS, ("dan", "x", 1, ""), ("dan", "y", 2, "good")]), tmp_path / "cache"
    for _ in range(2):
        source = open_data(path, cache=cache)
        assert histories(source) == {**EXPECTED, "dan": ["x", "y"]}  # type: ignore[arg-type]
        assert np.isnan(source.rating).tolist() == [False] * 6 + [True] * 2  # type: ignore[attr-defined]
        for asked in ("rating=rating", "least=1"):
            source = open_data(f"{path}?{asked}", cache=cache, max_bad=0.5)
            assert histories(source) == EXPECTED, asked  # type: ignore[arg-type]
            assert [s.reason for s in source.skipped] == ["rating that is no number"] * 2


def test_all_bad_rows_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    rows: list[tuple] = [(f"u{i % 50}", f"i{i % 30}", i, 3) for i in range(1000)] + [("u1", "i1", "soon", 3)] * 30
    source = opened(write(tmp_path / "a.csv", rows))
    assert source.left_out == audit_events(source, None).skipped_count == 30
    assert [s.name for s in source.skipped] == [f"row {n}" for n in range(1002, 1022)] + ["10 more rows"]


def test_what_is_refused_is_one_line(tmp_path: Path) -> None:
    for name, rows, message in (
        ("one_user", [("a", "x", 1, 1), ("a", "y", 2, 1)], "a single user, 'a'"),
        ("one_item", [("a", "x", 1, 1), ("b", "x", 2, 1)], "a single item, 'x'"),
        ("empty", [], "no usable event among 0 rows"),
    ):
        with pytest.raises(UserError, match=message) as error:
            opened(write(tmp_path / f"{name}.csv", rows))
        assert "\n" not in str(error.value)
    path = write(tmp_path / "a.csv")
    for end, message in (
        ("least=9", "no event of"),
        ("core=9", "no event of"),
        ("core=x", "must be numbers"),
        ("repeats=no", "keep or first"),
    ):
        with pytest.raises(UserError, match=message):
            opened(f"{path}?{end}")
    with pytest.raises(UserError, match="has no ratings"):
        opened(f"{write(tmp_path / 'b.csv', [row[:2] for row in ROWS], 'user,item')}?least=4")


def test_filters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv")
    assert histories(opened(f"{path}?least=3")) == {"ann": ["y", "x", "x"], "cy": ["x"]}
    assert histories(opened(f"{path}?repeats=first"))["ann"] == ["y", "x"]
    rows = [(u, i, 0, 0) for u in "abc" for i in "xyz"] + [("d", "x", 0, 0), ("a", "w", 0, 0)]
    core = opened(f"{write(tmp_path / 'b.csv', rows)}?core=3")
    assert (sorted(core.names), list(core.items)) == (["a", "b", "c"], ["x", "y", "z"])


def test_a_session_is_a_history_of_its_own(tmp_path: Path) -> None:
    rows = [("a", "x", 0, 1), ("a", "y", 1800, 1), ("a", "z", 3601, 1), ("b", "x", 0, 1), ("b", "y", 9000, 1)]
    path = write(tmp_path / "a.csv", rows)
    expected = {"a/1": ["x", "y"], "a/2": ["z"], "b/1": ["x"], "b/2": ["y"]}
    assert histories(opened(f"{path}?session=30")) == expected
    assert histories(opened(f"{path}?session=31")) == {"a/1": ["x", "y", "z"], "b/1": ["x"], "b/2": ["y"]}
    for end, message in (("session=0", "minutes above 0"), ("session=x", "must be numbers")):
        with pytest.raises(UserError, match=message):
            opened(f"{path}?{end}")
    with pytest.raises(UserError, match="has no times"):
        opened(f"{write(tmp_path / 'b.csv', [row[:2] for row in rows], 'user,item')}?session=30")


def test_ids_of_every_sort(tmp_path: Path) -> None:
    """Negative numbers are ids like others; numbers and words mixed are words, and 7 is not 07."""
    source = opened(write(tmp_path / "a.csv", [("-1", "10", 1, 1), ("2", "-9", 1, 1), ("10", "2", 1, 1)]))
    assert (list(source.names), list(source.items)) == (["-1", "2", "10"], ["-9", "2", "10"])
    source = opened(write(tmp_path / "b.csv", [("-1", "7", 1, 1), ("b", "07", 1, 1), ("10", "x 1", 1, 1)]))
    assert (list(source.names), list(source.items)) == (["-1", "10", "b"], ["07", "7", "x 1"])


def test_times(tmp_path: Path) -> None:
    found, counted = times(pa.array(["2020-01-01", "2020-01-01T00:00:00Z", " 1577836800", "soon", None]))
    assert found[:3].tolist() == [1577836800.0] * 3
    assert np.isnan(found[3:]).all()
    assert counted.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("factor", [1, 10**3, 10**6, 10**9])
def test_the_unit_of_times_is_that_of_the_file(factor: int) -> None:
    """Dates beside numbers are seconds whatever the unit, and a single wrong number changes nothing of the others."""
    time = np.array([1577836800.0 * factor, 1577836801.0 * factor, 1e18, 1577836800.0])
    found = in_seconds(time, np.array([True, True, True, False]))
    assert found[[0, 1, 3]].tolist() == [1577836800.0, 1577836801.0, 1577836800.0]


def test_a_quote_that_is_not_closed_costs_its_own_row_alone(tmp_path: Path) -> None:
    """Nor does one that is closed by a later row's quote, wherever blocks end."""
    lines = [f"u{i % 50},i{i % 30},{i},3" for i in range(1000)]
    lines[100] = 'u1,"i2,100,3'
    lines[300] = 'u1,"i3",300,3'
    lines[301] = '"u2",i4,301,"3'
    lines[500] = 'u1,i5 5" wide,500,3'
    for block in (1 << 23, 1000, 100):
        path = tmp_path / f"{block}.csv"
        path.write_text("user,item,time,rating\n" + "\n".join(lines) + "\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csv_blocks, "BLOCK", block)
            source = opened(path)
        assert int(source.lengths.sum()) == 998
        assert [(s.name, s.reason) for s in source.skipped] == [
            ("row 102", "a quote that is not closed"),
            ("row 303", "a quote that is not closed"),
        ]
        assert 'i5 5" wide' in source.items


def test_a_row_may_go_on_over_several_lines(tmp_path: Path) -> None:
    rows = [f'u{i % 5},i{i % 7},{i},"good,\n\nthe ""best"" of\n {i}"' for i in range(100)]
    for block in (1 << 23, 500, 50):
        path = tmp_path / f"{block}.csv"
        path.write_text("user,item,time,words\n" + "\n".join(rows) + "\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csv_blocks, "BLOCK", block)
            source = opened(path)
        assert (int(source.lengths.sum()), source.left_out) == (100, 0)


def test_an_endless_line_is_one_bad_row(tmp_path: Path) -> None:
    lines = [f"u{i % 5},i{i % 7},{i}" for i in range(300)]
    lines[150] = "u1," + "x" * 5000
    path = tmp_path / "a.csv"
    path.write_text("user,item,time\n" + "\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_blocks, "BLOCK", 1000)
        source = opened(path)
    assert (int(source.lengths.sum()), source.left_out) == (299, 1)
    assert source.skipped[0].name == "row 152"


def test_the_nearest_columns_are_offered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", names="usr_id,itm,time,rating")
    with pytest.raises(UserError, match=r"add \?user=usr_id&item=itm; it has usr_id, itm, time, rating"):
        opened(f"{path}?user=usr_id")
    with pytest.raises(UserError, match=r"unknown column of .*a.csv for user 'usr'; did you mean 'usr_id'"):
        opened(f"{path}?user=usr&item=itm")


def test_the_cache_gives_the_same_and_is_made_anew_where_it_is_damaged(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "a.csv"), tmp_path / "cache"
    first = open_data(path, cache=cache)
    said: list[str] = []
    again = open_data(path, cache=cache, say=said.append)
    assert any("using prepared" in line for line in said)
    assert histories(first) == histories(again) == EXPECTED  # type: ignore[arg-type]
    assert first.fingerprint == again.fingerprint
    next(cache.glob("event*/item.npy")).write_bytes(b"nonsense")
    assert histories(open_data(path, cache=cache)) == EXPECTED  # type: ignore[arg-type]


def test_fetch_cut_rename_and_ask(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.csv"))
    inputs = source.fetch(np.array([0, 2]))
    assert inputs["items"].tolist() == [[2, 1, 1], [1, 0, 0]]
    assert inputs["length"].tolist() == [3, 1]
    part = source.cut(np.array([[1, 3], [3, 5], [0, 0]]), np.array([0, 1, 0]))
    assert list(part.names) == ["ann", "bob", "ann"]
    assert part.fetch(np.arange(3))["items"].tolist() == [[1, 1], [2, 3], [0, 0]]
    other = source.renamed(np.array([0, 7, 9]))  # x is unknown
    assert other.fetch(np.arange(3))["items"].tolist() == [[7, 0], [7, 9], [0, 0]]
    assert other.fetch(np.arange(3))["length"].tolist() == [1, 2, 0]
    asked = part.asking(np.array([1, 0, 0])).fetch(np.arange(2))["scored"]
    assert asked.tolist() == [[False, True], [True, True]]


def test_a_user_keeps_his_hash_and_his_events_change_it(tmp_path: Path) -> None:
    first = opened(write(tmp_path / "a.csv"))
    second = opened(write(tmp_path / "b.csv", [*ROWS, ("dan", "x", 1, 1)]))
    assert np.isin(first.hashes, second.hashes).all()
    later = opened(write(tmp_path / "c.csv", [*ROWS, ("ann", "z", 99, 1)]))
    assert np.isin(first.hashes, later.hashes).tolist() == [False, True, True]


def test_find_columns(tmp_path: Path) -> None:
    found = find_columns(write(tmp_path / "a.csv", [], "review,Customer ID,Product-Id,Date"), {})
    assert found is not None
    assert vars(found) == {"user": "Customer ID", "item": "Product-Id", "time": "Date", "rating": None}


def test_blanks_around_cells_belong_to_no_id(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user, item, time\nann, x, 1\nann,y , 2\nbob , x, 3\n")
    source = opened(path)
    assert histories(source) == {"ann": ["x", "y"], "bob": ["x"]}
    assert list(source.items) == ["x", "y"]


def test_nanoseconds_of_a_parquet_log(tmp_path: Path) -> None:
    time = pa.array([1577836800000000001, 1577836801500000999, 1577836802000000000], pa.timestamp("ns"))
    pq.write_table(pa.table({"user": ["a", "a", "b"], "item": ["x", "y", "x"], "time": time}), tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet")
    assert source.time is not None
    assert source.time.tolist() == [1577836800.0, 1577836801.5, 1577836802.0]


def test_half_a_character_in_an_id_is_no_end(tmp_path: Path) -> None:
    rows = [{"user": f"u{u}", "item": "\ud83d" if i == 0 else f"i{i}", "time": i} for u in range(5) for i in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "\\ud83d" in open_data(tmp_path / "a.jsonl", cache=False).items  # type: ignore[attr-defined]
