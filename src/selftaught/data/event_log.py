"""From a file of events to sorted arrays, once: in the prepared cache, memory-mapped."""

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selftaught.data import event_files
from selftaught.data.cache import discard, writing
from selftaught.data.event_files import Columns, Part
from selftaught.data.events import EventSource
from selftaught.data.ragged import within
from selftaught.data.source import Skipped, content_hash
from selftaught.errors import UserError

FORMAT = 4
_LISTED = 20  # bad rows that are listed; the others are counted
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_ARRAYS = ("bounds", "item", "time", "rating", "hashes")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Filter:
    """Which events of a log are kept. least: rating of those that count as liked; None: all. core: users and items have at least
    so many events, counted again until that is so. repeats: keep an item that comes again in a history, or its first
    event alone. session: minutes without an event after which a user's next one begins a history of its own; None: a history
    is all of a user's events."""

    least: float | None = None
    core: int = 1
    repeats: bool = True
    session: float | None = None


def filter_of(given: dict[str, str]) -> Filter:
    """The filter that is written after a path: least=4&core=5&repeats=first&session=30."""
    try:
        least, session = (float(given[name]) if name in given else None for name in ("least", "session"))
        core = int(given.get("core", 1))
    except ValueError:
        raise UserError("least, core and session after ? must be numbers, as in ?least=4&core=5&session=30") from None
    if core < 1 or given.get("repeats", "keep") not in ("keep", "first"):
        raise UserError("core after ? must be 1 or more, and repeats keep or first")
    if session is not None and not 0 < session < float("inf"):
        raise UserError(f"session={given['session']} after ? must be a number of minutes above 0")
    return Filter(least, core, given.get("repeats", "keep") == "keep", session)


@dataclass
class _Growing:
    """What was read so far. rated: ratings are asked for, so that a row without one is bad."""

    users: dict[str, int]
    items: dict[str, int]
    columns: list[tuple[np.ndarray, ...]]
    bad: list[Skipped]
    counted: list[np.ndarray]
    rated: bool
    rows: int = 0
    bad_rows: int = 0

    def add(self, part: Part) -> None:
        """Add the usable rows of a part; count and list the others."""
        n = len(part.user)
        reason = np.full(n, "", dtype="<U40")
        time = counted = rating = None
        for column, what in ((part.user, "user"), (part.item, "item")):
            empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0).fill_null(True)
            reason[empty.to_numpy(zero_copy_only=False)] = f"no {what}, or no valid text"
        if part.time is not None:
            time, counted = times(part.time)
            reason[(reason == "") & ~np.isfinite(time)] = "time that cannot be read"
        if part.rating is not None:
            rating = numbers(part.rating)
            if self.rated:
                reason[(reason == "") & ~np.isfinite(rating)] = "rating that is no number"
        good = np.flatnonzero(reason == "")
        bad = [*part.broken, *((part.row(int(i)), str(reason[i])) for i in np.flatnonzero(reason != "")[:_LISTED])]
        self.bad += [Skipped(f"row {row}", why) for row, why in sorted(bad)[: max(0, _LISTED - len(self.bad))]]
        self.bad_rows += n - len(good) + len(part.broken)
        self.rows += n + len(part.broken)
        codes = [_codes(c.take(pa.array(good)), seen) for c, seen in ((part.user, self.users), (part.item, self.items))]
        more = [x[good] for x in (time, None if rating is None else rating.astype(np.float32)) if x is not None]
        self.columns.append((*codes, *more))
        if counted is not None:
            self.counted.append(counted[good])


def _codes(column: pa.Array, seen: dict[str, int]) -> np.ndarray:
    """The number of each id, int32; new ids get the next ones."""
    found = column.dictionary_encode()
    numbers = [seen.setdefault(value, len(seen)) for value in found.dictionary.to_pylist()]
    return (
        np.array(numbers, np.int32)[found.indices.to_numpy(zero_copy_only=False)] if numbers else np.empty(0, np.int32)
    )


def numbers(column: pa.Array) -> np.ndarray:
    """float64, NaN for what is no number."""
    fits = pc.match_substring_regex(column, _NUMBER).fill_null(False)
    kept = pc.if_else(fits, pc.utf8_trim_whitespace(column), pa.scalar(None, pa.string()))
    return kept.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)


def times(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """float64: numbers as they are, and the seconds since 1970 of ISO 8601 dates; NaN for anything else. And which are numbers,
    bool."""
    found = numbers(column).copy()
    counted = ~np.isnan(found)
    other = np.flatnonzero(~counted)
    found[other] = [_iso(text) for text in column.take(pa.array(other)).to_pylist()]
    return found, counted


def in_seconds(time: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Times of a whole file: its numbers are seconds, or milli-, micro- or nanoseconds since 1970 where they are so large; their
    median says which, so no single wrong one does."""
    size = float(np.median(np.abs(time[counted]))) if counted.any() else 0.0
    unit = next((unit for least, unit in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)) if size > least), 1.0)
    return time if unit == 1.0 else np.where(counted, time / unit, time)


def _iso(text: str | None) -> float:
    try:
        moment = datetime.datetime.fromisoformat((text or "").strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return float("nan")


def _ranked(ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Raw ids in order, as numbers where all are integers, and the place of each: what they are numbered by does not depend
    on the order of the file."""
    key: Any = int if all(_INTEGER.fullmatch(x) for x in ids) else None
    order = sorted(range(len(ids)), key=(lambda i: int(ids[i])) if key else ids.__getitem__)
    place = np.empty(len(ids), np.int32)
    place[order] = np.arange(len(ids), dtype=np.int32)
    return [ids[i] for i in order], place


def _kept(user: np.ndarray, item: np.ndarray, chosen: Filter) -> np.ndarray:
    """Which events belong to the core, bool [E]."""
    kept = np.ones(len(user), bool)
    while chosen.core > 1:
        enough = [np.bincount(x[kept], minlength=int(x.max(initial=0)) + 1)[x] >= chosen.core for x in (user, item)]
        again = kept & enough[0] & enough[1]
        if (again == kept).all():
            break
        kept = again
    return kept


def _first_only(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Events sorted by user and time: which are the first with their item in a history, bool [E]."""
    order = np.lexsort((np.arange(len(user)), item, user))
    new = np.ones(len(user), bool)
    new[1:] = (np.diff(user[order]) != 0) | (np.diff(item[order]) != 0)
    first = np.empty(len(user), bool)
    first[order] = new
    return first


def _hashes(names: Sequence[str], items: Sequence[str], bounds: np.ndarray, item: np.ndarray, time: Any) -> np.ndarray:
    """uint64 [N], of a user's id and events."""
    of_items = np.array([content_hash(x.encode()) for x in items], np.uint64)
    of_users = np.array([content_hash(x.encode()) for x in names], np.uint64)
    nth = within(bounds[:, 1] - bounds[:, 0])
    mixed = of_items[item] * (2 * nth.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    if time is not None:
        mixed ^= time.view(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(31)
    return of_users ^ np.add.reduceat(mixed * np.uint64(0x94D049BB133111EB), bounds[:, 0])


def _sorted(growing: _Growing, columns: Columns | None, chosen: Filter, where: str) -> dict[str, Any]:
    """The arrays of an EventSource, from all that was read."""
    has_time, has_rating = (
        columns is not None and columns.time is not None,
        columns is not None and columns.rating is not None,
    )
    arrays = [np.concatenate(x) for x in zip(*growing.columns, strict=True)]
    growing.columns.clear()
    (users, user_place), (items, item_place) = _ranked(list(growing.users)), _ranked(list(growing.items))
    user, item = user_place[arrays[0]], item_place[arrays[1]]
    time = in_seconds(arrays[2], np.concatenate(growing.counted)) if has_time else None
    rating = arrays[-1] if has_rating else None
    if chosen.least is not None:
        if rating is None:
            raise UserError(
                f"{where} has no ratings, so none is {chosen.least:g} or more; leave out least, or name rating=COLUMN"
            )
        user, item, time, rating = _at(rating >= chosen.least, user, item, time, rating)
    order = np.argsort(user, kind="stable") if time is None else np.lexsort((time, user))  # stable: ties as in the file
    user, item, time, rating = _at(order, user, item, time, rating)
    users, user = _visits(users, user, time, chosen.session, where)
    if not chosen.repeats:
        user, item, time, rating = _at(_first_only(user, item), user, item, time, rating)
    user, item, time, rating = _at(_kept(user, item, chosen), user, item, time, rating)
    if len(user) == 0:
        raise UserError(f"no event of {where} is left; ask for a smaller core or rating, or look at the file")
    here, user = np.unique(user, return_inverse=True)
    there, item = np.unique(item, return_inverse=True)
    if len(here) < 2 or len(there) < 2:
        few = f"a single user, '{users[here[0]]}'" if len(here) < 2 else f"a single item, '{items[there[0]]}'"
        raise UserError(f"{where} has events of {few}; at least two users and two items are needed")
    counts = np.bincount(user)
    bounds = np.stack([counts.cumsum() - counts, counts.cumsum()], 1).astype(np.int64)
    names, items = [users[i] for i in here.tolist()], [items[i] for i in there.tolist()]
    item = item.astype(np.int32)
    hashes = _hashes(names, items, bounds, item, time)
    return {
        "names": names,
        "items": items,
        "bounds": bounds,
        "item": item,
        "time": time,
        "rating": rating,
        "hashes": hashes,
    }


def _visits(
    users: list[str], user: np.ndarray, time: np.ndarray | None, session: float | None, where: str
) -> tuple[list[str], np.ndarray]:
    """Histories that end where a user does nothing for so many minutes, of events sorted by user and time: their names, the
    user's with a number, and whose each event is."""
    if session is None:
        return users, user
    if time is None:
        raise UserError(f"{where} has no times, so nothing tells its sessions; leave out session, or name time=COLUMN")
    new = np.ones(len(user), bool)
    new[1:] = (np.diff(user) != 0) | (np.diff(time) > 60 * session)
    owner = user[new]
    first = np.searchsorted(owner, owner)
    return [f"{users[u]}/{n}" for u, n in zip(owner, np.arange(len(owner)) - first + 1, strict=True)], new.cumsum() - 1


def _at(index: np.ndarray, *arrays: np.ndarray | None) -> list[Any]:
    return [None if x is None else x[index] for x in arrays]


def open_events(
    path: Path,
    given: dict[str, str],
    chosen: Filter,
    *,
    cache: Path | None,
    max_bad: float,
    say: Callable[[str], None],
    progress: Progress,
) -> EventSource:
    """Open a log. given: names of its columns by their role, where they are not the usual ones.

    Raises UserError where users or items have no column, too many rows are bad or less than two users or items are left.
    """
    columns = None if path.suffix.lower() == ".txt" else event_files.find_columns(path, given)
    if columns is None and path.suffix.lower() != ".txt":
        has = ", ".join(event_files.header(path)[:20])
        raise UserError(
            f"{path} has no column of users or of items by a usual name; "
            f"add ?{event_files.nearest_columns(path, given)}; it has {has}"
        )
    status, rated = path.stat(), "rating" in given or chosen.least is not None
    asked = [vars(columns or Filter()), vars(chosen), rated]
    stamp = json.dumps([FORMAT, str(path.resolve()), status.st_size, status.st_mtime_ns, *asked])
    key = f"event{FORMAT}-{hashlib.blake2b(stamp.encode(), digest_size=16).hexdigest()}"
    if cache is not None and (found := _opened(cache / key)) is not None:
        say(f"using prepared events {cache / key}")
        return _checked(found, max_bad, str(path), say)
    growing = _Growing({}, {}, [], [], [], rated)
    for part in event_files.read(path, columns):
        growing.add(part)
        progress(min(growing.rows, 1 << 62), max(growing.rows, 1))
    if not growing.columns or not sum(len(x[0]) for x in growing.columns):
        raise UserError(
            f"{path} has no usable event among {growing.rows} rows" + _first(growing.bad) + "; pass another file"
        )
    _limit(growing.bad_rows, growing.rows, growing.bad, max_bad, str(path))
    arrays = _sorted(growing, columns, chosen, str(path))
    meta = {"bad": growing.bad_rows, "rows": growing.rows, "listed": growing.bad}
    if cache is None:
        return _checked((arrays, meta), max_bad, str(path), say)
    with writing(cache) as (folder, commit):
        for name in _ARRAYS:
            if arrays[name] is not None:
                np.save(folder / f"{name}.npy", arrays[name])
        for name in ("names", "items"):
            (folder / f"{name}.json").write_text(json.dumps(arrays[name], ensure_ascii=False), "utf-8")
        (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
        final = commit(key)
    opened = _opened(final)
    assert opened is not None, final  # it has just been written
    return _checked(opened, max_bad, str(path), say)


def _opened(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A prepared folder, memory-mapped; None where there is none. One that is damaged is removed."""
    if not folder.is_dir():
        return None
    try:
        arrays: dict[str, Any] = {
            name: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
            if (file := folder / f"{name}.npy").is_file()
            else None
            for name in _ARRAYS
        }
        arrays |= {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("names", "items")}
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        if len(arrays["bounds"]) != len(arrays["names"]) or arrays["bounds"][-1, 1] != len(arrays["item"]):
            raise ValueError("incomplete")
    except (OSError, ValueError, TypeError, IndexError):
        discard(folder)
        return None
    return arrays, meta


def _checked(found: tuple[dict[str, Any], dict[str, Any]], max_bad: float, where: str, say: Any) -> EventSource:
    arrays, meta = found
    listed = [Skipped(str(name), str(reason)) for name, reason in meta["listed"]]
    _limit(meta["bad"], meta["rows"], listed, max_bad, where)
    if meta["bad"]:
        say(f"{meta['bad']} of {meta['rows']} rows left out{_first(listed)}")
        rest = meta["bad"] - len(listed)
        listed += [Skipped(f"{rest} more rows", "counted, not listed")] if rest > 0 else []
    names, items = arrays.pop("names"), arrays.pop("items")
    return EventSource(
        names, items, arrays.pop("bounds"), arrays.pop("item"), skipped=listed, left_out=meta["bad"], **arrays
    )


def _first(bad: Sequence[Skipped]) -> str:
    return f", the first {bad[0].name}: {bad[0].reason}" if bad else ""


def _limit(bad: int, rows: int, listed: Sequence[Skipped], max_bad: float, where: str) -> None:
    if bad > max_bad * rows:
        raise UserError(
            f"{bad} of {rows} rows of {where} cannot be used, more than {max_bad:.0%}{_first(listed)}; repair them"
        )
