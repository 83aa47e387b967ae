"""Files of text to documents: plain text in any encoding, JSON lines, tables; long ones in pieces."""

import codecs
import csv
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, AnyStr, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from selftaught.data import encodings
from selftaught.data.csv_blocks import LINES, OPEN
from selftaught.data.listing import read_file, shown, why
from selftaught.data.tables import LABEL_COLUMNS, choose_column
from selftaught.errors import BadSample, UserError

SUFFIXES = frozenset({".txt", ".text", ".jsonl"})
TABLES = frozenset({".csv", ".tsv", ".parquet"})
TEXT_COLUMNS = ("text", "review", "sentence", "content", "document", "body", "comment", "abstract", "title")
CUT = 1 << 20
"""Characters: a longer document is cut into several, so that an endless line needs no endless memory."""
PART = 1 << 12
"""Characters of a document where one file is one text: so many that its parts lose little by being apart, so few that a
tenth of them can be held out of a megabyte."""
LONGEST = 1 << 26
"""Bytes, or characters, of a line of a table or of JSON lines; a longer one is left out."""
_TOO_LONG = f"a line of {LONGEST >> 20} MB or more"
SPLITS = ("file", "line", "blank")
Progress = Callable[[int, int], None]


class Document(NamedTuple):
    """One text, what it is called, and its label where it has one; or why it cannot be used. part: it is a part of a text
    that goes on in the next document, white space and all."""

    name: str
    text: str
    label: str | None = None
    bad: str | None = None
    part: bool = False


@dataclass(frozen=True)
class Plan:
    """How files become documents. split: of plain text; None: files in a folder, else paragraphs where a file has blank
    lines, else lines; "file" of one file alone: parts of it. text, label: columns by name; None: the usual ones."""

    split: str | None = None
    text: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in SPLITS:
            raise UserError(f"split '{self.split}' is unknown; use {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")


def is_list_of_paths(file: Path, suffixes: frozenset[str]) -> bool:
    """Whether a .txt names files (pictures, say) instead of being text: its first line does."""
    try:
        with file.open("rb") as stream:
            first = stream.readline(4096).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        return False
    return bool(first) and (Path(first).suffix.lower() in suffixes or is_file(file.parent / first))


def is_file(path: Path) -> bool:
    """Whether a file of that name exists; a long text is no file name, and no error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def has_text_column(table: Path, plan: Plan, path_columns: tuple[str, ...]) -> bool:
    """Whether a table holds texts rather than paths of pictures."""
    if plan.text is not None:
        return True
    columns = [c.lower().strip() for c in _columns(table)]
    return any(c in columns for c in TEXT_COLUMNS) and not any(c in columns for c in path_columns)


def documents(
    files: list[Path],
    names: list[str],
    plan: Plan,
    single: bool,
    labels: list[str] | None,
    say: Callable[[str], None],
    progress: Progress,
) -> Iterator[Document]:
    """The documents of files, in order. single: the one file that was named, rather than a folder's; labels: of files."""
    for i, (file, name) in enumerate(zip(files, names, strict=True)):
        try:
            if file.suffix.lower() in TABLES | {".jsonl"}:
                found = rows(file, plan)
            else:
                split = plan.split or (_usual_split(file, say) if single else "file")
                found = _parts(file, name) if single and split == "file" else _plain(file, name, split)
            for document in found:
                yield from _cut(document if labels is None else document._replace(label=labels[i]))
        except OSError as error:
            yield Document(name, "", bad=why(error))
        except BadSample as error:
            yield Document(name, "", bad=str(error))
        progress(i + 1, len(files))


def _cut(document: Document) -> Iterator[Document]:
    """A document in pieces of at most CUT characters, cut at white space where there is some."""
    name, text, label, bad, _ = document
    if len(text) <= CUT:
        yield document
        return
    start = part = 0
    while start < len(text):
        stop = min(len(text), start + CUT)
        if stop < len(text):
            stop = max(text.rfind("\n", start + CUT // 2, stop), text.rfind(" ", start + CUT // 2, stop)) + 1 or stop
        part += 1
        yield Document(f"{name} part {part}", text[start:stop], label, bad)
        start = stop


def _lines(file: Path) -> Iterator[tuple[int, str | None]]:
    """(number, line) of a text file, long lines in pieces; None for a line that its encoding does not allow."""
    encoding = encodings.of_file(file)
    if encoding.startswith(("utf-16", "utf-32")):
        with file.open(encoding=encoding, errors="replace", newline=None) as stream:
            number = 1
            while line := stream.readline(CUT):
                yield number, line
                number += line.endswith("\n")
        return
    decoder, carried = codecs.getincrementaldecoder(encoding)(), ""
    with file.open("rb") as stream:
        number = 1
        while piece := stream.readline(CUT):
            ends = piece.endswith(b"\n")
            try:
                text = carried + decoder.decode(piece, final=ends)
            except UnicodeDecodeError:
                decoder.reset()
                carried = ""
                yield number, None
            else:
                # A piece of an endless line ends at white space, where there is some.
                stop = len(text) if ends or len(piece) < CUT else max(text.rfind(" "), CUT // 4)
                carried = text[stop:]
                yield number, text[:stop]
            number += ends
    if carried:
        yield number, carried


def whole_lines(file: Path) -> Iterator[tuple[int, str | None]]:
    """(number, line) of a text file, blank ones too; None for one that its encoding does not allow or longer than CUT."""
    for number, pieces in itertools.groupby(_lines(file), key=lambda piece: piece[0]):
        held: list[str] | None = []
        for _, piece in pieces:
            if held is None or piece is None or sum(map(len, held)) + len(piece) > CUT:
                held = None
            else:
                held.append(piece)
        yield number, None if held is None else "".join(held)


def rows(file: Path, plan: Plan) -> Iterator[Document]:
    """The rows of a table or of a file of JSON lines. Raises UserError where there is no text column."""
    return _jsonl(file, plan) if file.suffix.lower() == ".jsonl" else _table(file, plan)


def columns(file: Path) -> list[str]:
    """The columns of a table, or the fields of the first of its JSON lines; empty where it cannot be read."""
    if file.suffix.lower() != ".jsonl":
        return _columns(file)
    try:
        with file.open("rb") as stream:
            first = json.loads(next((x for x in _short_lines(stream) if x and x.strip()), b"{}"))
    except (OSError, ValueError, RecursionError):
        return []
    return list(first) if isinstance(first, dict) else []


def _usual_split(file: Path, say: Callable[[str], None]) -> str:
    """Paragraphs where at least one line in thirty is blank, else lines."""
    lines = blank = size = 0
    for _, line in _lines(file):
        lines, blank, size = lines + 1, blank + (line is not None and not line.strip()), size + len(line or "")
        if lines > 5000 or size > 16 * CUT:
            break
    split = "blank" if blank * 30 >= max(lines, 1) and blank > 1 else "line"
    words = {"blank": "separated by blank lines", "line": "one a line"}[split]
    others = " or ".join(f"?split={s}" for s in SPLITS if s != split)
    say(f"{file.name}: documents are {words} ({others} after the path reads it otherwise)")
    return split


def _plain(file: Path, name: str, split: str) -> Iterator[Document]:
    if split == "file":
        data = read_file(file)
        encoding = encodings.of_file(file)
        try:
            yield Document(name, data.decode(encoding))
        except UnicodeDecodeError as error:
            raise BadSample(f"not {encoding} from byte {error.start} on") from None
        return
    held: list[str] = []
    first = 1
    size = 0
    for number, line in _lines(file):
        if line is None:
            yield Document(f"{name}:{number}", "", bad="bytes that its encoding does not allow")
        elif split == "line":
            if line.strip():
                yield Document(f"{name}:{number}", line)
        elif line.strip() and size < CUT:
            first = number if not held else first
            held.append(line)
            size += len(line)
        elif held:
            yield Document(f"{name}:{first}", "".join(held))
            held, size = ([line], len(line)) if line.strip() else ([], 0)
            first = number
    if held:
        yield Document(f"{name}:{first}", "".join(held))


def _parts(file: Path, name: str) -> Iterator[Document]:
    """One file as one text, in parts of whole lines and about PART characters (longer ones where a line is)."""
    held: list[str] = []
    size = part = 0
    for number, line in _lines(file):
        if line is None:
            yield Document(f"{name}:{number}", "", bad="bytes that its encoding does not allow")
            continue
        if held and size + len(line) > PART:
            part += 1
            yield Document(f"{name} part {part}", "".join(held), part=True)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield Document(f"{name} part {part + 1}", "".join(held), part=True)


def _jsonl(file: Path, plan: Plan) -> Iterator[Document]:
    has_label = set[bool]()
    with file.open("rb") as stream:
        for number, line in enumerate(_short_lines(stream), 1):
            name = f"{shown(file.name)}:{number}"
            if line is None:
                yield Document(name, "", bad=_TOO_LONG)
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                text = row[choose_column(list(row), plan.text, TEXT_COLUMNS, file) or "text"]
                label = choose_column(list(row), None, LABEL_COLUMNS, file) if plan.label is None else plan.label
                value = row.get(label)  # a row without one is a text without a label
            except (ValueError, TypeError, KeyError, UserError, RecursionError):
                yield Document(name, "", bad="not a JSON object with a text field")
                continue
            if not isinstance(text, str):
                yield Document(name, "", bad=f"its text is of type {type(text).__name__}")
                continue
            has_label.add(label in row)
            yield Document(name, text, None if value is None else shown(str(value)))
    if plan.label is not None and has_label == {False}:  # no row has one: its name may be wrong
        choose_column(columns(file), plan.label, LABEL_COLUMNS, file)


def _short_lines(stream: IO[AnyStr]) -> Iterator[AnyStr | None]:
    """The lines of a stream; None for one of LONGEST bytes or characters and more, which is never held as a whole."""
    while line := stream.readline(LONGEST):
        short = len(line) < LONGEST
        yield line if short else None
        while len(line) == LONGEST and line[-1] not in ("\n", "\r", 10):
            line = stream.readline(LONGEST)


class _Lines(Iterator[str]):
    """The lines of a table, for a csv.reader. taken: those of the row that is being read. Raises csv.Error where that row is
    open still after many lines or at the end of the file, and for a line that is too long."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines, self._ahead = _short_lines(stream), deque[str | None]()
        self.taken: list[str] = []

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines, "")
        if self.taken and (not line or len(self.taken) == LINES):
            if line != "":
                self._ahead.appendleft(line)
            raise csv.Error(OPEN)
        if line is None:
            raise csv.Error(_TOO_LONG)
        if line == "":
            raise StopIteration
        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """Of the row that was read its first line alone is past."""
        self._ahead.extendleft(reversed(self.taken[1:]))


def _rows(table: Path, stream: IO[str]) -> Iterator[list[str] | str]:
    """The rows of a table as lists of cells; of one that is broken, why: its first line alone is left out."""
    csv.field_size_limit(LONGEST)
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        lines.taken.clear()
        try:
            cells = next(reader)
            # A stray quote ends at that of a later row's cell, and letters follow: no whole row.
            if len(lines.taken) > 1:
                next(csv.reader(lines.taken, delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            yield OPEN if len(lines.taken) > 1 else str(error)
            lines.give_back()
        else:
            yield cells


def _columns(table: Path) -> list[str]:
    try:
        if table.suffix.lower() == ".parquet":
            return list(pq.read_schema(table).names)
        with table.open(encoding=encodings.of_file(table), newline="", errors="replace") as file:
            found = next(_rows(table, file), [])
            return found if isinstance(found, list) else []
    except (OSError, pa.ArrowException, BadSample):
        return []  # whoever reads it next says what is wrong with it


def _table(table: Path, plan: Plan) -> Iterator[Document]:
    columns = _columns(table)
    text = choose_column(columns, plan.text, TEXT_COLUMNS, table)
    label = choose_column(columns, plan.label, LABEL_COLUMNS, table)
    if text is None:
        raise UserError(
            f"{table} has no text column; its columns: {', '.join(columns[:20])}; name one: {table.name}?text=COLUMN"
        )
    if table.suffix.lower() == ".parquet":
        with pq.ParquetFile(table) as file:
            row = 0
            for batch in file.iter_batches(1024, columns=[text] + ([label] if label else [])):
                values = batch.to_pydict()
                for i, value in enumerate(values[text]):
                    row += 1
                    given = values[label][i] if label else None
                    yield Document(f"row {row}", str(value or ""), None if given is None else str(given))
        return
    at, label_at = columns.index(text), None if label is None else columns.index(label)
    with table.open(encoding=encodings.of_file(table), newline="", errors="replace") as file:
        found = _rows(table, file)
        next(found)
        for row, cells in enumerate(found, 2):
            if isinstance(cells, str):
                yield Document(f"row {row}", "", bad=cells)
            elif len(cells) > at:
                given = cells[label_at] if label_at is not None and len(cells) > label_at else None
                yield Document(f"row {row}", cells[at], given or None)
            elif cells:
                yield Document(f"row {row}", "", bad=f"{len(cells)} cells, the text is in cell {at + 1}")
