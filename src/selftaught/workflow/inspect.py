"""inspect: what is in the data, which pretext tasks suit it, and what a run would cost on this machine."""

import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selftaught.data.cache import show_bytes
from selftaught.errors import UserError
from selftaught.pretext import available, find
from selftaught.train.distributed import Ranks
from selftaught.train.progress import clock
from selftaught.workflow.kinds import KINDS, data_called, kind_called
from selftaught.workflow.plan import Request, measure, resolve
from selftaught.workflow.prepare import open_any, pick_device

_EPOCHS = 100
_MEASURING = 60.0  # seconds, after which no further task is measured


def inspect(data: Any, other: Any, cost: bool, quiet: bool) -> dict[str, Any]:
    """The audit, the fitting tasks and their cost, as JSON values; printed unless `quiet`."""
    device = pick_device("auto")
    limit = 96 if device == "cpu" else 224
    source = open_any(data, limit, quiet)
    second = None if other is None else open_any(other, limit, quiet)
    if second is not None and second.kind != source.kind:
        raise UserError(f"an audit of {source.kind} data cannot look for leaks from {second.kind} data")
    found = data_called(source.kind).audit(source, second, quiet)
    tasks = []
    offered, started = found.offers, time.monotonic()
    first = kind_called(source.kind).default_pretext if source.kind in KINDS else ""
    for name in sorted(available(), key=lambda name: (name != first, name)):
        task = find(name)
        if source.kind not in task.kinds:
            continue
        asked = [offered[want] for want in sorted(task.wants)]
        fits = all(there for there, _ in asked)
        reason = "; ".join(why for there, why in asked if fits or not there) or "asks nothing in particular of the data"
        row: dict[str, Any] = {"task": name, "suits": fits, "reason": reason}
        if cost and fits and time.monotonic() - started < _MEASURING:
            row |= _cost(name, source, device)
        elif cost and fits:
            row["cost"] = (
                f"not measured, {_MEASURING:.0f} s were spent on the others; selftaught tasks --cost counts it"
            )
        tasks.append(row)
    if not quiet:
        _print(found.lines, tasks)
    return {**found.values, "fingerprint": source.fingerprint, "tasks": tasks}


def _cost(pretext: str, source: Any, device: str) -> dict[str, Any]:
    """Seconds a step, memory, disk and the time of 100 epochs, from a few real steps with the automatic settings."""
    request = Request(
        data="", pretext=pretext, encoder="auto", weights=None, steps=1, epochs=None, minutes=None, batch=None, lr=None,
        size=None, holdout=0.1, seed=0, device=device, settings=[], recipe=None,
    )  # fmt: skip
    try:
        recipe, modality, training = resolve(
            request, source, kind_called(source.kind).split(source, request.holdout), device, Ranks(), lambda line: None
        )
        found = measure(recipe, modality, training, Ranks())
    except UserError as error:
        return {"cost": str(error)}
    steps = _EPOCHS * (len(training.train) // recipe.train.batch)
    return {
        "encoder": recipe.encoder.name,
        "batch": recipe.train.batch,
        "seconds_per_step": round(found.seconds, 4),
        "memory_bytes": round(found.memory),
        "disk_bytes": found.disk,
        "epochs": _EPOCHS,
        "seconds": round(found.seconds * steps, 1),
    }


def _print(lines: list[tuple[str, str]], tasks: list[dict[str, Any]]) -> None:
    out = Console()
    facts = Table.grid(padding=(0, 2))
    for line in lines:
        facts.add_row(*line)
    out.print(facts, markup=False, highlight=False)
    if not tasks:  # of pairs
        return
    table = Table("task", "suits", "why", "cost on this machine", box=None, pad_edge=False)
    for row in tasks:
        cost = row.get("cost", "")
        if "seconds" in row:
            cost = (
                f"{row['encoder']}, batch {row['batch']}: {row['seconds_per_step']:.2f} s a step, "
                f"{show_bytes(row['memory_bytes'])} of memory, {show_bytes(row['disk_bytes'])} of disk; "
                f"{row['epochs']} epochs in {clock(row['seconds'])}"
            )
        table.add_row(Text(row["task"]), "yes" if row["suits"] else "no", Text(row["reason"]), Text(cost))
    out.print(table)
