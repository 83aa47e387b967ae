"""What the training loop is watched with: held-out samples are measured every few steps, without labels."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import rng
from selftaught.batch import Batch
from selftaught.data import Source
from selftaught.evaluation.health import HealthRow, measure
from selftaught.evaluation.knn import knn
from selftaught.evaluation.watch import diagnose

_SAMPLES = 256
_ONLINE_TRAIN, _ONLINE_TEST, _ONLINE_K = 2000, 500, 20
_ONLINE_EVERY = 4  # measures between two online kNNs: each encodes ten times the samples of a measure
_LEAST = 10
_STEP = 1 << 40  # the key of held-out views: a step that no run reaches, so they are the same at every measure


class HealthMonitor:
    """Every `every` steps: effective rank, spread, alignment, uniformity and the pretext loss on held-out samples.

    Where the data has labels, an online kNN from training samples to held-out ones is measured as well; nothing is
    chosen by it. The figures go to health.jsonl, alarms to alarms.jsonl and, in words, to the terminal.
    chance: the loss of a model that has learnt nothing, where the task knows it.
    """

    def __init__(
        self,
        source: Source,
        train: np.ndarray,
        held: np.ndarray,
        seed: int,
        every: int,
        batch: int,
        chance: float | None,
    ) -> None:
        self.source, self.seed, self.every, self.chance = source, seed, every, chance
        self.held = held[rng.permutation(len(held), seed, 4)]
        self.train = train[rng.permutation(len(train), seed, 5)[:_ONLINE_TRAIN]]
        self.scored = self.held[: min(batch, len(held))]
        self.history: list[HealthRow] = []
        self.projected: list[HealthRow] = []
        self.losses: list[float] = []
        self.read = 0  # bytes of log.jsonl that are in `losses`

    def look(self, trainer: Any, step: int, run: Any, meter: Any) -> str | None:
        """Measure, log, and raise an alarm in words where the figures call for one. Every rank calls it."""
        self._recall(run, step)
        with trainer.measuring():
            row, projected = self._measure(trainer, step)
            held_loss = self._held_out_loss(trainer)
        self.history.append(row)
        more: dict[str, float | int | None] = {"held_out_loss": held_loss}
        if projected is not None:
            self.projected.append(projected)
            more |= {
                "projected_rank": projected.rank,
                "projected_std": projected.std,
                "projected_width": projected.width,
            }
        if not run.writes:
            return None
        run.append("health.jsonl", {**dataclasses.asdict(row), **more})
        news, self.read = run.rows_after("log.jsonl", self.read)
        self.losses += [r["loss"] for r in news]
        collapses = trainer.task.collapses
        # Of both outputs: what is known to be wrong with one is not to hide the other's.
        found = (
            diagnose(self.history, self.losses, self.chance, collapses),
            diagnose(self.projected, self.losses, None, collapses),
        )
        for alarm in filter(None, found):
            if alarm.kind not in {r["name"] for r in run.rows("alarms.jsonl")}:
                words = {"seen": alarm.seen, "cause": alarm.cause, "remedy": alarm.remedy}
                run.append("alarms.jsonl", {"step": step, "name": alarm.kind, **words})
                meter.say(f"ALARM: {alarm}")
        return f"rank {row.rank:.1f}" + (f"  kNN {row.knn:.2f}" if row.knn is not None else "")

    def _recall(self, run: Any, step: int) -> None:
        """After a resume, take up the measures made before it."""
        if not self.history and step > 0:
            fields = [f.name for f in dataclasses.fields(HealthRow)]
            rows = run.rows("health.jsonl")
            self.history = [HealthRow(**{k: r.get(k) for k in fields}) for r in rows]
            self.projected = [
                HealthRow(
                    r["step"], r["projected_rank"], r["projected_std"], width=r["projected_width"], samples=r["samples"]
                )
                for r in rows
                if "projected_rank" in r
            ]

    def _batch(self, index: np.ndarray, device: torch.device) -> Batch:
        return Batch(self.source.fetch(index), torch.from_numpy(index), self.seed, _STEP).to(device)

    def _features(self, trainer: Any, index: np.ndarray) -> Tensor:
        task, parts = trainer.task, []
        for part in np.array_split(index, -(-len(index) // _SAMPLES)):
            batch = self._batch(part, trainer.device)
            parts.append(task.encoder(task.modality.plain(batch)).pooled.float())
        return torch.cat(parts)

    def _measure(self, trainer: Any, step: int) -> tuple[HealthRow, HealthRow | None]:
        """Health of the encoder's features and, where the task projects them, of what its loss compares."""
        task, index = trainer.task, self.held[:_SAMPLES]
        strong = task.modality.view(self._batch(index, trainer.device), task.modality.contrastive_view(), stream=1)
        features = self._features(trainer, index)
        row = measure(features, step=step, second=task.encoder(strong).pooled.float(), knn=self._knn(trainer))
        projected = task.project(features)
        return row, None if projected is features else measure(projected.float(), step=step)

    def _held_out_loss(self, trainer: Any) -> float | None:
        """The pretext loss on held-out samples, always the same views; it chooses the checkpoint to protect.

        All ranks take equally many, because losses gather rows over ranks; up to world - 1 samples are left out.
        """
        ranks = trainer.ranks
        each = len(self.scored) // ranks.world
        if each < 2 or trainer.task.supervised:
            return None
        part = self.scored[ranks.rank * each : (ranks.rank + 1) * each]
        return trainer.mean(trainer.model(self._batch(part, trainer.device)).loss.float().item())

    def _knn(self, trainer: Any) -> float | None:
        labels = self.source.labels
        if labels is None or trainer.step % (_ONLINE_EVERY * self.every):
            return None
        bank, query = (part[labels[part] >= 0] for part in (self.train, self.held[:_ONLINE_TEST]))
        if min(len(bank), len(query)) < _LEAST:
            return None
        target, truth = (torch.from_numpy(labels[part]).to(trainer.device) for part in (bank, query))
        found = knn(self._features(trainer, bank), target, self._features(trainer, query), k=_ONLINE_K)
        return (found == truth).float().mean().item()
