"""A CSV file in blocks of whole rows, whatever is wrong with some of them.

A parser that meets a quote which is never closed takes what follows for one long cell, up to some later quote or the end of a
huge file. Here such a row is left out alone, and what follows it is read; a row that does go on over several lines is put on
one.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.csv as pacsv

BLOCK = 1 << 23
LINES = 200  # of one row, at most
_LONG = "a line of more than 8 MB"
OPEN = "a quote that is not closed"


class Block(NamedTuple):
    """Some rows: the columns that were asked for, as bytes; and those that could not be read: (place among the rows of the block,
    from 0, why)."""

    rows: pa.RecordBatch
    broken: list[tuple[int, str]]


def read_blocks(path: Path, names: list[str], wanted: list[str], separator: str, quotes: bool) -> Iterator[Block]:
    """Columns of a file whose header, the first line, holds `names`.

    quotes: whether cells may be quoted.
    """
    carried, first = b"", True
    with path.open("rb") as stream:
        while True:
            read = stream.read(BLOCK)
            data = carried + read
            if first:  # the header
                data, first = data.partition(b"\n")[2], False
            cut = data.rfind(b"\n") + 1 if read else len(data)
            block, carried = data[:cut], data[cut:]
            long = len(carried) > BLOCK
            if block.strip():
                found, back = _block(block, names, wanted, separator, quotes, last=long or not read)
                carried = back + carried
                yield found
            if long:
                carried = _rest_of_line(stream)
                yield Block(_columns(b"", names, wanted, separator, quotes)[0], [(0, _LONG)])
            if not read:
                return


def _rest_of_line(stream: BinaryIO) -> bytes:
    """What follows the line that is being read, of the next part of the file that has its end."""
    while data := stream.read(BLOCK):
        _, newline, rest = data.partition(b"\n")
        if newline:
            return rest
    return b""


def _block(
    block: bytes, names: list[str], wanted: list[str], separator: str, quotes: bool, last: bool
) -> tuple[Block, bytes]:
    """The rows of a block, and what of its end belongs to a row that goes on behind it."""
    if quotes and b'"' in block:
        lines = sum(1 for line in block.split(b"\n") if line.strip(b"\r"))
        try:
            rows, broken = _columns(block, names, wanted, separator, quotes)
            whole = len(rows) + len(broken) == lines and not _is_open(
                block[block.rstrip().rfind(b"\n") + 1 :], separator
            )
        except pa.ArrowInvalid:
            whole = False
        if whole:
            return Block(rows, broken), b""
        return _repaired(block, names, wanted, separator, last)
    return Block(*_columns(block, names, wanted, separator, quotes)), b""


def _columns(
    block: bytes, names: list[str], wanted: list[str], separator: str, quotes: bool
) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    broken: list[tuple[int, str]] = []

    def handle(row: pacsv.InvalidRow) -> str:
        broken.append(((row.number or 1) - 1, f"{row.actual_columns} columns in place of {row.expected_columns}"))
        return "skip"

    empty = pa.RecordBatch.from_pydict({name: pa.array([], pa.binary()) for name in wanted})
    if not block.strip():
        return empty, broken
    table = pacsv.read_csv(
        pa.BufferReader(block),
        # One thread: only then are the rows that cannot be cut told by number.
        read_options=pacsv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
        parse_options=pacsv.ParseOptions(
            delimiter=separator,
            quote_char='"' if quotes else False,
            newlines_in_values=True,
            invalid_row_handler=handle,
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.binary()), include_columns=wanted, strings_can_be_null=False
        ),
    )
    batches = table.combine_chunks().to_batches()
    return (batches[0] if batches else empty), broken


def _repaired(block: bytes, names: list[str], wanted: list[str], separator: str, last: bool) -> tuple[Block, bytes]:
    """The same where a row does not end with its line."""
    lines = [line for line in block.split(b"\n") if line.strip(b"\r")]
    kept: list[bytes] = []
    broken: list[tuple[int, str]] = []
    at = 0
    while at < len(lines):
        if not _is_open(lines[at], separator):
            kept.append(lines[at])
            at += 1
            continue
        end = _end(lines, at, len(names), separator)
        if end is None and not last and len(lines) - at < LINES:
            break
        if end is None:
            broken.append((len(kept) + len(broken), OPEN))
            at += 1
        else:
            kept.append(b" ".join(line.strip(b"\r") for line in lines[at:end]))
            at = end
    rows, more = _columns(b"\n".join(kept) + b"\n", names, wanted, separator, True)
    places = [i for i in range(len(kept) + len(broken)) if i not in {place for place, _ in broken}]
    broken = sorted([*broken, *((places[i], why) for i, why in more)])
    return Block(rows, broken), b"".join(line + b"\n" for line in lines[at:])


def _end(lines: list[bytes], at: int, columns: int, separator: str) -> int | None:
    """The line behind the row that begins at `at`; None where there is no such row."""
    for end in range(at + 1, min(at + LINES, len(lines))):
        if b'"' in lines[end]:
            row = b"\n".join(lines[at : end + 1])
            if not _is_open(row, separator):
                return end + 1 if len(_cells(row, separator) or []) == columns else None
    return None


def _is_open(row: bytes, separator: str) -> bool:
    return b'"' in row and _cells(row, separator) is None


def _cells(row: bytes, separator: str) -> list[str] | None:
    """The cells of one row; None where a quote is not closed in it."""
    try:
        text = row.decode("utf-8", "replace").replace("\0", " ")
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [])
    except csv.Error:
        return None
