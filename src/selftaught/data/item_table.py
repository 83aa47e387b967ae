"""What is known of the items of a log beside who had them: words and attributes, from a table of items."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selftaught.data import encodings
from selftaught.data.csv_blocks import read_blocks
from selftaught.data.event_files import USUAL, header, plain, separator
from selftaught.data.listing import why
from selftaught.errors import BadSample, UserError, unknown

SUFFIXES = frozenset({".csv", ".tsv", ".item", ".jsonl", ".parquet", ".json"})
_WORDS = ["title", "name", "text", "description", "movie_title", "item_name", "product_name", "product_title"]
_ATTRIBUTES = [
    "attributes",
    "genres",
    "genre",
    "categories",
    "category",
    "class",
    "tags",
    "tag",
    "brand",
    "author",
    "artist",
]
_PARTS = re.compile(r"[|;,]")


class ItemFacts(NamedTuple):
    """words: of each item of a log, "" where there are none. item, attribute: int64 [A], which items have which attributes,
    positions. attributes: their names."""

    words: list[str]
    item: np.ndarray
    attribute: np.ndarray
    attributes: list[str]

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        found = hashlib.blake2b("\0".join([*self.words, "", *self.attributes]).encode(), digest_size=16)
        found.update(np.stack([self.item, self.attribute]).astype("<i8").tobytes())
        return found.hexdigest()


def read_items(
    path: Path, items: Sequence[str], words: str | None = None, attributes: str | None = None, key: str | None = None
) -> tuple[ItemFacts, int]:
    """Facts of the items of a log, by their raw ids, and how many items have none.

    words, attributes: names of columns, several after commas. key: that of the column of raw ids. None: by usual names.
    A JSON file is one object: {item: [attributes]} or {item: words}.
    Raises UserError where the table cannot be read, a column is not there, or no item of the log is.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise UserError(f"'{path}' is no table of items; name a {', '.join(sorted(SUFFIXES))} file with items=FILE")
    place = {item: i for i, item in enumerate(items)}
    said, pairs, codes, seen = [""] * len(items), set[tuple[int, int]](), dict[str, int](), set[int]()
    try:
        for item, text, has in _rows(path, words, attributes, key):
            at = place.get(item.strip())
            if at is None:
                continue
            seen.add(at)
            said[at] = said[at] or text.strip()
            pairs.update((at, codes.setdefault(name, len(codes))) for name in has)
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        reason = why(error) if isinstance(error, OSError) else str(error).splitlines()[0][:200]
        raise UserError(f"{path} cannot be read: {reason}") from None
    if not seen:
        raise UserError(f"no item of the log is in {path}; their ids must be the same")
    names = sorted(codes)
    new = {codes[name]: i for i, name in enumerate(names)}
    table = np.array(sorted((at, new[code]) for at, code in pairs), np.int64).reshape(-1, 2)
    return ItemFacts(said, table[:, 0], table[:, 1], names), len(items) - len(seen)


def _rows(
    path: Path, words: str | None, attributes: str | None, key: str | None
) -> Iterator[tuple[str, str, list[str]]]:
    """(raw id, words, attributes) of each row."""
    if path.suffix.lower() == ".json":
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise UserError(f"{path} must hold one object, {{item: [attributes]}} or {{item: words}}")
        for item, value in found.items():
            if isinstance(value, list) and all(isinstance(x, str | int | float) for x in value):
                yield item, "", [str(x) for x in value]
            elif isinstance(value, str):
                yield item, value, []
            else:
                raise UserError(
                    f"'{item}' in {path} is {json.dumps(value)[:80]}, neither words nor a list of attributes; write a .jsonl "
                    "with a row for each item where there are several fields"
                )
        return
    names = header(path)
    by_name = {plain(name): name for name in reversed(names)}

    def choose(given: str | None, usual: Sequence[str], what: str) -> list[str]:
        if given is None:
            return [by_name[name] for name in usual if name in by_name]
        chosen = given.split(",")
        for name in chosen:
            if name not in names:
                raise unknown(f"column of {path} for {what}", name, names)
        return chosen

    ids = choose(key, USUAL["item"].split(), "items")
    text, has = choose(words, _WORDS, "words"), choose(attributes, _ATTRIBUTES, "attributes")
    text = text[:1] if words is None else text  # usual names may say the same twice
    if not ids:
        raise UserError(
            f"{path} has no column of items by a usual name, such as item_id; it has {', '.join(names[:20])}"
        )
    if not text and not has:
        raise UserError(
            f"{path} has neither words nor attributes by a usual name; add &words=COLUMN or &attributes=COLUMN; it has "
            f"{', '.join(names[:20])}"
        )
    for batch in _tables(path, names, list(dict.fromkeys([ids[0], *text, *has]))):
        columns = _texts(batch, [ids[0], *text, *has], path)
        for item, *rest in zip(*columns, strict=True):
            cells = zip(has, rest[len(text) :], strict=True)
            said = " ".join(x for x in map(str.strip, rest[: len(text)]) if x)
            yield item, said, [f"{plain(c)}: {x}" for c, cell in cells for x in _cut(c, cell)]


def _tables(path: Path, names: list[str], wanted: list[str]) -> Iterator[pa.RecordBatch | pa.Table]:
    if path.suffix.lower() == ".parquet":
        yield pq.read_table(path, columns=wanted)
    elif path.suffix.lower() == ".jsonl":
        with path.open(encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} must hold one JSON object a line")
        yield pa.table({name: [_flat(row.get(name)) for row in rows] for name in wanted})
    else:
        quotes = path.suffix.lower() != ".item"
        for block in read_blocks(path, names, wanted, separator(path), quotes):
            yield block.rows


def _flat(value: object) -> str:
    return "|".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _texts(batch: pa.RecordBatch | pa.Table, names: list[str], path: Path) -> list[list[str]]:
    """Columns as text, in the one encoding of all their cells."""
    columns = [batch.column(name).to_pylist() for name in names]
    wide = b"\n".join(x for column in columns for x in column if isinstance(x, bytes) and not x.isascii())
    try:
        encoding = encodings.of_bytes(wide)
        return [[x.decode(encoding) if isinstance(x, bytes) else _flat(x) for x in column] for column in columns]
    except (BadSample, UnicodeDecodeError):
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None


def _cut(column: str, cell: str) -> list[str]:
    """The attributes in a cell: a typed column of RecBole says whether blanks part them; elsewhere | ; and , do."""
    kind = column.partition(":")[2]
    parts = cell.split() if kind == "token_seq" else [cell] if kind else _PARTS.split(cell.strip("[]"))
    return [x.strip().strip("'\"") for x in parts if x.strip().strip("'\"")]
