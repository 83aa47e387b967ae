"""Lists of samples: a text file of paths, or a CSV, TSV or Parquet table with a path column."""

import csv
import difflib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from selftaught.data.listing import Listing, number_labels, shown, why
from selftaught.data.source import Skipped
from selftaught.errors import UserError

PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class")
SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".parquet"})


def list_table(table: Path, *, path_column: str | None = None, label_column: str | None = None) -> Listing:
    """The files that a .txt, .csv, .tsv or .parquet names; relative paths count from the table's own folder.

    path_column, label_column: columns by name; left out, the first of PATH_COLUMNS and LABEL_COLUMNS that exists.
    Raises UserError for a table that cannot be read or has no such column.
    """
    try:
        if table.suffix.lower() == ".txt":
            rows: list[tuple[str, str | None]] = [
                (line.strip(), None) for line in table.read_text("utf-8-sig").splitlines() if line.strip()
            ]
        elif table.suffix.lower() == ".parquet":
            rows = _parquet(table, path_column, label_column)
        else:
            rows = _csv(table, path_column, label_column)
    except OSError as error:
        raise UserError(f"cannot read {table}: {why(error)}; check its path and permissions") from None
    except UnicodeDecodeError:
        raise UserError(f"{table} is not UTF-8 text; save it as UTF-8") from None
    except (csv.Error, pa.ArrowException) as error:
        raise UserError(f"{table} cannot be read as {table.suffix[1:]}: {str(error).splitlines()[0]}") from None
    return list_paths(table, rows, table.parent)


def list_paths(root: Path, rows: list[tuple[str, str | None]], folder: Path = Path()) -> Listing:
    """The files of (path, label) rows; relative paths count from `folder`. `root`: what messages call the whole."""
    names, files, stamps, values, skipped = [], [], [], [], []
    for name, value in rows:
        path = folder / name
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            skipped.append(Skipped(shown(name), why(error) if isinstance(error, OSError) else "not a path"))
            continue
        names.append(shown(name))
        files.append(path)
        stamps.append((name, status.st_size, status.st_mtime_ns))
        values.append(value)
    labels, classes = number_labels(values)
    return Listing(root, names, files, stamps, labels=labels, classes=classes, skipped=skipped)


def choose_column(columns: list[str], wanted: str | None, usual: tuple[str, ...], table: Path) -> str | None:
    """The column called `wanted`, or else the first of the usual names (in any case) that exists, or None."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UserError(
            f"{table} has no column '{wanted}'{_nearest([wanted], columns)}; its columns: {_shown(columns)}"
        )
    lower = {name.lower().strip(): name for name in reversed(columns)}
    return next((lower[name] for name in usual if name in lower), None)


def _path_column(columns: list[str], wanted: str | None, table: Path) -> str:
    found = choose_column(columns, wanted, PATH_COLUMNS, table)
    if found is None:
        raise UserError(
            f"{table} has no column called {', '.join(PATH_COLUMNS[:-1])} or {PATH_COLUMNS[-1]}"
            f"{_nearest(PATH_COLUMNS, columns)}; its columns: {_shown(columns)}; name one: {table.name}?path=COLUMN of "
            "pictures, ?text=COLUMN of texts, or ?user=COLUMN&item=COLUMN of a log of events"
        )
    return found


def _nearest(wanted: list[str] | tuple[str, ...], columns: list[str]) -> str:
    lower = {name.lower(): name for name in columns}
    near = [hit for name in wanted for hit in difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)]
    near += [name for short, name in lower.items() if any(word.lower() in short for word in wanted)]
    return f" (nearest: '{lower.get(near[0], near[0])}')" if near else ""


def _shown(columns: list[str]) -> str:
    return ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")


def _csv(table: Path, path_column: str | None, label_column: str | None) -> list[tuple[str, str | None]]:
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        columns = next(reader, [])
        at = columns.index(_path_column(columns, path_column, table))
        label = choose_column(columns, label_column, LABEL_COLUMNS, table)
        label_at = None if label is None else columns.index(label)
        rows: list[tuple[str, str | None]] = []
        for row in reader:
            if len(row) > at and row[at].strip():
                rows.append((row[at].strip(), row[label_at] if label_at is not None and len(row) > label_at else None))
    return rows


def _parquet(table: Path, path_column: str | None, label_column: str | None) -> list[tuple[str, str | None]]:
    with pq.ParquetFile(table) as file:
        columns = file.schema_arrow.names
        path = _path_column(columns, path_column, table)
        label = choose_column(columns, label_column, LABEL_COLUMNS, table)
        kind = file.schema_arrow.field(path).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(
                f"column '{path}' of {table} is {kind}, not text; name the column of paths: {table.name}?path=COLUMN"
            )
        data = file.read(columns=[path] if label is None else [path, label])
    labels = [None] * len(data) if label is None else [None if v is None else str(v) for v in data[label].to_pylist()]
    return [(name, value) for name, value in zip(data[path].to_pylist(), labels) if name]
