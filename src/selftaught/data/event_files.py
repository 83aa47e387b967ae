"""Event logs in files, read in parts: CSV, TSV, JSON lines, Parquet, RecBole's .inter, and lines `user item item ...`."""

import csv
import difflib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selftaught.data.csv_blocks import read_blocks
from selftaught.data.listing import shown, why
from selftaught.errors import UserError, unknown

TABLES = frozenset({".csv", ".tsv", ".inter", ".jsonl", ".parquet"})
SUFFIXES = TABLES | {".txt"}
USUAL = {
    "user": "user user_id uid userid customer customer_id customerid visitor visitor_id visitorid session session_id "
    "reviewer_id reviewerid account account_id member_id",
    "item": "item item_id iid itemid product product_id productid movie movie_id movieid sku asin article article_id "
    "track_id song_id book_id isbn event_id event page url",
    "time": "time timestamp ts date datetime created created_at event_time unixreviewtime unix_timestamp",
    "rating": "rating score stars overall",
}
"""Names of columns, as `plain` writes them, in the order of preference."""
_ROWS = 1 << 18
_NEAR = 0.6  # how alike names must be for one to be offered in place of the other
_LINE = re.compile(rb"\s*\S+(\s+\S+)+\s*")


@dataclass(frozen=True)
class Columns:
    """The columns of a log, by their names in the file; time and rating may be None: there is none."""

    user: str
    item: str
    time: str | None
    rating: str | None


@dataclass(frozen=True)
class Part:
    """Some rows: columns of text (pyarrow string arrays; null where a value is missing or no valid text), the number of the
    file's first row among them, and rows that could not be cut into columns (number, why)."""

    user: pa.Array
    item: pa.Array
    time: pa.Array | None
    rating: pa.Array | None
    first: int
    broken: list[tuple[int, str]]

    def row(self, i: int) -> int:
        """The number in the file of the i-th row here: those that could not be cut lie between."""
        row = self.first + i
        for number, _ in sorted(self.broken):
            row += number <= row
        return row


def header(path: Path) -> list[str]:
    """Names of a table's columns; of JSON lines those of the first line."""
    try:
        if path.suffix.lower() == ".parquet":
            return list(pq.ParquetFile(path).schema_arrow.names)
        with path.open("rb") as stream:
            line = stream.readline(1 << 20)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {why(error) if isinstance(error, OSError) else error}") from None
    text = line.decode("utf-8-sig", "replace").strip("\r\n")
    if path.suffix.lower() == ".jsonl":
        try:
            first = json.loads(text)
        except ValueError:
            return []
        return list(first) if isinstance(first, dict) else []
    if path.suffix.lower() == ".inter":
        return text.split("\t")
    try:
        return [name.strip() for name in next(csv.reader([text], delimiter=separator(path)), [])]
    except csv.Error:
        return []


def separator(path: Path) -> str:
    """What parts the columns of a table, by its suffix."""
    return "," if path.suffix.lower() == ".csv" else "\t"


def plain(name: str) -> str:
    """userId, User-ID, user_id:token: all user_id, or userid."""
    return re.sub(r"[^a-z0-9]+", "_", name.partition(":")[0].strip().lower()).strip("_")


def find_columns(path: Path, given: dict[str, str]) -> Columns | None:
    """The columns that are given by name, the others by their usual names; None where users or items have none.

    Raises UserError where a column that was given is not there.
    """
    names = header(path)
    found: dict[str, str | None] = {}
    for role, usual in USUAL.items():
        if role in given:
            if given[role] not in names:
                raise unknown(f"column of {path} for {role}", given[role], names)
            found[role] = given[role]
        else:
            by_name = {plain(name): name for name in reversed(names) if name not in given.values()}
            found[role] = next((by_name[name] for name in usual.split() if name in by_name), None)
    if found["user"] is None or found["item"] is None or found["user"] == found["item"]:
        return None
    return Columns(found["user"], found["item"], found["time"], found["rating"])


def nearest_columns(path: Path, given: dict[str, str]) -> str:
    """What may be meant where users or items have no column by a usual name: user=COLUMN&item=COLUMN by the nearest names."""
    names, said = header(path), []
    for role in ("user", "item"):
        others = {plain(name): name for name in reversed(names) if name not in given.values()}
        scored = [
            (difflib.SequenceMatcher(None, name, usual).ratio(), name)
            for name in others
            for usual in USUAL[role].split()
        ]
        best = max(scored, default=(0.0, ""))
        said.append(f"{role}={given.get(role) or (others[best[1]] if best[0] > _NEAR else 'COLUMN')}")
    return "&".join(said)


def is_sequences(path: Path) -> bool:
    """Whether a .txt holds lines `user item item ...` of integers: the first ones do."""
    try:
        with path.open("rb") as stream:
            lines = [line for line in itertools.islice(stream, 20) if line.strip()]
    except OSError:
        return False
    return bool(lines) and all(_LINE.fullmatch(x) and all(_is_integer(t) for t in x.split()) for x in lines)


def _is_integer(token: bytes) -> bool:
    return token.removeprefix(b"-").isdigit()


def is_log(path: Path, given: dict[str, str] | None = None) -> bool:
    """Whether a file is a log of events, by its head."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in SUFFIXES:
        return False
    if given and ("user" in given or "item" in given):
        return True
    if suffix == ".txt":
        return is_sequences(path)
    try:
        return find_columns(path, {}) is not None
    except UserError:
        return False


def read(path: Path, columns: Columns | None) -> Iterator[Part]:
    """The rows of a log, in the order of the file; columns: None of a file of sequences."""
    try:
        if columns is None:
            yield from _sequences(path)
        elif path.suffix.lower() == ".jsonl":
            yield from _json_lines(path, columns)
        elif path.suffix.lower() == ".parquet":
            yield from _parquet(path, columns)
        else:
            yield from _separated(path, columns)
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}") from None
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0][:200]}") from None


def _separated(path: Path, columns: Columns) -> Iterator[Part]:
    wanted = [name for name in vars(columns).values() if name is not None]
    at = 2  # row 1 is the header
    quotes = path.suffix.lower() != ".inter"
    for rows, broken in read_blocks(path, header(path), wanted, separator(path), quotes):
        found = {name: rows.column(name) for name in wanted}
        yield _part(found, columns, at, [(at + place, why) for place, why in broken])
        at += len(rows) + len(broken)


def _part(found: dict[str, pa.Array], columns: Columns, first: int, broken: list[tuple[int, str]]) -> Part:
    texts = [None if name is None else _text(found[name]) for name in vars(columns).values()]
    return Part(texts[0], texts[1], texts[2], texts[3], first, broken)


def _text(column: pa.Array) -> pa.Array:
    """As strings without blanks around them, as in `user, item`; null where the bytes are no UTF-8."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        micro = pc.CastOptions(pa.timestamp("us"), allow_time_truncate=True)
        column = pc.cast(column, options=micro).cast(pa.int64()).cast(pa.string())
    try:
        texts = column.cast(pa.string())
    except pa.ArrowInvalid:
        texts = pa.array([_decoded(x) for x in column.to_pylist()], pa.string())
    return pc.utf8_trim_whitespace(texts)


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _parquet(path: Path, columns: Columns) -> Iterator[Part]:
    names = [name for name in vars(columns).values() if name is not None]
    at = 1
    for batch in pq.ParquetFile(path).iter_batches(_ROWS, columns=names):
        yield _part({name: batch.column(name) for name in names}, columns, at, [])
        at += len(batch)


def _json_lines(path: Path, columns: Columns) -> Iterator[Part]:
    names = [name for name in vars(columns).values() if name is not None]
    with path.open("rb") as stream:
        at = 1
        while lines := list(itertools.islice(stream, _ROWS // 4)):
            rows, broken = [], []
            for number, line in enumerate(lines, at):
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("no object")
                except (ValueError, RecursionError):
                    if line.strip():
                        broken.append((number, "no JSON object"))
                    continue
                rows.append(row)
            values = {
                name: pa.array([None if r.get(name) is None else shown(str(r[name])) for r in rows], pa.string())
                for name in names
            }
            yield _part(values, columns, at, broken)
            at += len(lines)


def _sequences(path: Path) -> Iterator[Part]:
    with path.open("rb") as stream:
        at = 1
        while lines := list(itertools.islice(stream, 1 << 13)):
            users, items, broken = list[str](), list[str](), []
            for number, line in enumerate(lines, at):
                try:
                    user, *rest = line.decode("utf-8").split()
                except (UnicodeDecodeError, ValueError):
                    if line.strip():
                        broken.append((number, "no line of a user and items"))
                    continue
                users += [user] * len(rest)
                items += rest
            yield Part(pa.array(users, pa.string()), pa.array(items, pa.string()), None, None, at, broken)
            at += len(lines)
