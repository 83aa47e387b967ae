"""Ours beside a peer: interleaved repeats, medians, one table or one line of JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypedDict


class Row(TypedDict):
    """One figure of ours beside a peer's, in `unit`; ratio > 1: ours is better. None: there is no such figure."""

    name: str
    unit: str
    ours: float | None
    peer: float | None
    ratio: float | None


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    unit: str = "per s",
    work: float = 1.0,
    repeats: int = 7,
) -> Row:
    """Rates of two functions that each do `work` units per call, from the medians of interleaved repeats.

    Interleaved, so that a load on the machine falls on both; one call of each goes before and is not timed.
    """
    ours()
    peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    mine, theirs = (statistics.median(times) for times in zip(*pairs))
    return Row(name=name, unit=unit, ours=work / mine, peer=work / theirs, ratio=theirs / mine)


def main(rows: Iterable[Row]) -> None:
    """Print rows: as a table, each as soon as it is measured, or with --json as one object."""
    if "--json" in sys.argv[1:]:
        print(json.dumps({"rows": list(rows)}))
        return
    print(f"{'':<54}{'ours':>12}{'peer':>12}  {'':<14}{'ratio':>7}")
    for row in rows:
        ours, peer = ("-" if x is None else f"{x:,.4g}" for x in (row["ours"], row["peer"]))
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        print(f"{row['name']:<54}{ours:>12}{peer:>12}  {row['unit']:<14}{ratio:>7}", flush=True)
