"""Answers as a table in a file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selftaught import disk
from selftaught.errors import UserError


def check_out(out: Path) -> None:
    """UserError where a table cannot be written to `out`: of another suffix, or there already."""
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"'{out}' must end in .csv or .parquet")
    if out.exists():
        raise UserError(f"'{out}' exists; name another file with --out, or remove it")


def write_columns(out: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns by name as CSV or Parquet, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with disk.replacing(out) as temporary:
        if out.suffix == ".parquet":
            pq.write_table(pa.table(dict(columns)), temporary)
        else:
            with temporary.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(columns)
                for row in zip(*columns.values(), strict=True):
                    writer.writerow([f"{x:.6f}" if isinstance(x, float) else x for x in row])
