"""What a task makes of held-out samples once it has been trained: its pictures and its answers, for the report."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from selftaught import disk, rng
from selftaught.batch import Answers, Batch, Shown
from selftaught.reporting.atlas import picture
from selftaught.train.folder import RunFolder
from selftaught.train.loop import Trainer
from selftaught.workflow.kinds import kind_called

PICTURES, OUTCOME = "rebuilt.png", "outcome.json"
_SHOWN, _ASKED = 8, 1024
_ORDER = 14  # key of which held-out samples those are


def write_outcome(
    trainer: Trainer, modality: Any, fetch: Callable[[np.ndarray, int], Batch], n: int, run: RunFolder
) -> None:
    """Write RUN/rebuilt.png and RUN/outcome.json, where the task makes pictures or gives answers.

    fetch: reads held-out samples by their position among the n there are. They lie by folder and name there, so those that
    are taken are the first ones in the order of a hash. Called on every rank, written by the first.
    """
    config = trainer.config
    if n == 0:
        return
    order = rng.permutation(n, config.seed, _ORDER)
    with trainer.measuring():
        first = fetch(order[:_SHOWN], config.steps).to(trainer.device)
        seen = [s._replace(read=s.read.cpu()) for s in trainer.task.rebuilt(first)]
        asked = _confusions(trainer, fetch, order[:_ASKED])
    if not run.writes or not (seen or asked):
        return
    found: dict[str, Any] = {"samples": len(first)}
    if seen:
        grid = kind_called(modality.name).grid(modality, Shown(tuple(seen), {}), len(first))
        if grid is not None:
            with disk.replacing(run.path / PICTURES) as temporary:
                picture(grid).save(temporary, "png")
            found["pictures"] = [s.name for s in seen]
    found |= asked
    disk.write_json(run.path / OUTCOME, found)


def _confusions(trainer: Trainer, fetch: Callable[[np.ndarray, int], Batch], positions: np.ndarray) -> dict[str, Any]:
    """Names of the answers, how often each was said where each is right, [right, said], and how often a guess is right; nothing
    where the task gives no answers."""
    found: Answers | None = None
    counts = torch.zeros(0, 0, dtype=torch.long)
    config = trainer.config
    size = max(1, config.batch // (config.accumulate * config.world))  # as many as a rank trains on at once
    for begin in range(0, len(positions), size):
        batch = fetch(positions[begin : begin + size], trainer.step)
        found = trainer.task.answers(batch.to(trainer.device))
        if found is None:
            return {}
        k = len(found.names)
        pairs = torch.bincount((found.right * k + found.said).cpu(), minlength=k * k).view(k, k)
        counts = pairs if begin == 0 else counts + pairs
    if found is None:
        return {}
    guess = 1 / len(found.names) if found.guess is None else found.guess
    return {"answers": list(found.names), "counts": counts.tolist(), "guess": guess}
