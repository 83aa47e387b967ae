"""Memory of preparing a large log of events and of training on it by sampled softmax.

    python benchmarks/large_log.py [--events 50000000] [--items 1000000] [--steps 20] [--folder DIR] [--json]

The log is made first, by a process of its own: CSV, popular items far more often than others, in the order of time (so a
user's events lie apart), one row in the middle broken by a quote that is not closed. Then it is prepared and
`sasrec_small` trained for some steps. Figures are of the process that does this: the most memory it ever held (VmHWM).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from _timing import Row, main

_PART = 1_000_000


def make(path: Path, events: int, items: int) -> None:
    """Write the log."""
    rng = np.random.default_rng(0)
    users = max(2, events // 50)
    with path.open("wb") as stream:
        stream.write(b"user_id,item_id,timestamp,what\n")
        options = pacsv.WriteOptions(include_header=False)
        for begin in range(0, events, _PART):
            n = min(_PART, events - begin)
            item = (items * rng.random(n) ** 3).astype(np.int64)
            if begin < items:  # every item at least once
                item[: items - begin] = np.arange(begin, min(items, begin + n))
            columns = {
                "user_id": 10_000_000 + rng.integers(0, users, n),
                "item_id": 20_000_000 + item,
                "timestamp": 1_600_000_000 + np.arange(begin, begin + n),
                "what": pa.array(["seen in the application on a phone"] * n),
            }
            if begin <= events // 2 < begin + n:
                stream.write(b'10000001,"20000001,1600000000,seen\n')
            pacsv.write_csv(pa.table(columns), stream, options)


def memory() -> float:
    """The most memory this process ever held, in GB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def rows(args: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "log.csv"
        again = [
            sys.executable,
            __file__,
            "--make",
            str(path),
            "--events",
            str(args.events),
            "--items",
            str(args.items),
        ]
        subprocess.run(again, check=True)
        os.environ["SELFTAUGHT_CACHE"] = str(Path(folder) / "cache")
        import selftaught
        from selftaught.data import open_data

        def row(name: str, unit: str, value: float) -> Row:
            return Row(name=name, unit=unit, ours=value, peer=None, ratio=None)

        yield row("the log", "GB", path.stat().st_size / 1e9)
        start = time.perf_counter()
        source = open_data(path)
        yield row("preparing it", "s", time.perf_counter() - start)
        yield row("memory until then", "GB", memory())
        left_out = f"{source.left_out} row left out ({source.skipped[0].name}: {source.skipped[0].reason})"
        yield row(f"events; {left_out}", "", float(source.lengths.sum()))
        yield row("items", "", float(len(source.items)))
        start = time.perf_counter()
        settings = ["pretext.loss=sampled"]
        selftaught.pretrain(path, pretext="next_item", steps=args.steps, set=settings, out=Path(folder) / "run")
        yield row(f"{args.steps} steps, all in all", "s", time.perf_counter() - start)
        yield row("memory until then", "GB", memory())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where the log may lie for as long: 10 GB; the usual temporary one")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    if arguments.make is not None:
        make(arguments.make, arguments.events, arguments.items)
    else:
        main(rows(arguments))
