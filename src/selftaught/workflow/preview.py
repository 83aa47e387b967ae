"""preview: what a pretext task sees of the data, and how often what it draws comes up, before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from selftaught import disk
from selftaught.batch import Batch, Share, Shown
from selftaught.errors import UserError
from selftaught.pretext import Pretext
from selftaught.reporting.atlas import picture
from selftaught.reporting.facts import words
from selftaught.reporting.preview import preview_lines, shares_table
from selftaught.train.distributed import Ranks
from selftaught.train.order import Order
from selftaught.train.progress import Meter
from selftaught.workflow.kinds import kind_called
from selftaught.workflow.plan import Request, Resolved, build_task, check, limit_of, resolve
from selftaught.workflow.prepare import fetcher, open_source, pick_device, positive


def preview(request: Request, data: Any, count: int, batches: int, out: Path | None, quiet: bool) -> dict[str, Any]:
    """The first `count` samples of the first step of the run that was asked for, and shares over `batches` steps of it, at
    most an epoch; printed unless `quiet`. Pictures are drawn into `out`; no run folder is written."""
    check(request)
    positive(count=count, batches=batches)
    if out is not None and out.suffix != ".png":
        raise UserError(f"'{out}' must end in .png")
    device = pick_device(request.device)
    source = open_source(data, limit_of(request, device), quiet)
    # Of one step, which is not measured: what the first steps see does not depend on how many follow.
    split = kind_called(source.kind).split(source, request.holdout)
    resolved = resolve(request, source, split, device, Ranks(), lambda line: None, quiet)
    recipe, modality, (read, train, _) = resolved
    task, loop = build_task(recipe, modality), recipe.train
    order, fetch = Order(len(train), loop.batch, loop.seed), fetcher(read, train, loop.seed, labels=task.supervised)
    batch = fetch(order.of_step(0), 0)
    shown, kind, rows = _shown(task, batch, recipe.pretext), kind_called(recipe.kind), min(count, loop.batch)
    grid = kind.grid(modality, shown, rows)
    file = _file(grid, out)
    steps = min(batches, order.steps_per_epoch) if shown.shares else 1
    parts = [shown.shares]
    with Meter("draw", steps, done=1, quiet=quiet) as meter:
        for step in range(1, steps):
            parts.append(_shown(task, fetch(order.of_step(step), step), recipe.pretext).shares)
            meter.update(step + 1)
    texts = kind.texts(modality, shown, rows)
    answers = shown.answers or ("",) * rows
    names = [read.names[int(i)] for i in batch.index[:rows]]
    samples = list(zip(names, answers, texts))
    result = {
        "pretext": recipe.pretext,
        "settings": recipe.pretext_config,
        "encoder": recipe.encoder.name,
        "batch": loop.batch,
        "samples": [_values(*sample) for sample in samples],
        "picture": None if file is None else str(file),
        "batches": steps,
        "shares": _summed(parts),
    }
    if file is not None and grid is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with disk.replacing(file) as temporary:
            picture(grid).save(temporary, "png")
    if not quiet:
        _print(resolved, samples, [seen.name for seen in shown.seen], result)
    return result


def _shown(task: Pretext, batch: Batch, name: str) -> Shown:
    with torch.no_grad():
        shown = task.show(batch)
    if shown is None:
        raise UserError(f"pretext '{name}' has no preview; give its class a method show (docs/new_pretext.md)")
    return shown


def _file(grid: np.ndarray | None, out: Path | None) -> Path | None:
    """Where a picture of the samples goes, if there is one."""
    if grid is None:
        if out is not None:
            raise UserError(f"--out {out} is for pictures; the preview of text is printed, leave --out away")
        return None
    file = out or Path("preview.png")
    if file.exists():
        raise UserError(f"'{file}' exists; name another file with --out, or remove it")
    return file


def _summed(parts: list[dict[str, Share]]) -> list[dict[str, Any]]:
    """Shares of several batches together; a share of nothing is left out."""
    rows = []
    for name, first in parts[0].items():
        part, whole = (sum(shares[name][i] or 0 for shares in parts) for i in (0, 1))
        if whole:
            rows.append({"name": name, "share": part / whole, "asked": first.asked, "of": whole})
    return rows


def _values(name: str, answer: str, texts: list[Any]) -> dict[str, Any]:
    joined = {reader: "".join(span.text for span in spans) for reader, spans in texts}
    return {"name": name, "answer": answer or None, "texts": joined}


def _print(resolved: Resolved, samples: list[Any], seen: list[str], result: dict[str, Any]) -> None:
    from rich.console import Console

    recipe, out = resolved.recipe, Console()
    size = f"{recipe.encoder.size} {kind_called(recipe.kind).unit}"
    settings = f"; {words(recipe.pretext_config)}" if recipe.pretext_config else ""
    out.print(
        f"{recipe.pretext} on {recipe.encoder.name}, step 0: {len(samples)} of the {recipe.train.batch} samples of its batch, "
        f"{len(resolved.training.train)} in all, of {size}{settings}",
        *("", *preview_lines(samples)),
        sep="\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if result["picture"]:
        out.print(f"{result['picture']}: {', '.join(seen)}", markup=False, highlight=False, soft_wrap=True)
    if result["shares"]:
        out.print(shares_table(result["shares"], result["batches"]))
