"""The guard against forgetting: what continued pretraining costs on data that the starting weights knew.

The figures are functions of the step's weights and of what lies in the run folder alone, so a resumed run writes the same.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught import disk, rng
from selftaught.batch import Batch
from selftaught.data import Source
from selftaught.errors import UserError
from selftaught.evaluation.intervals import Interval, difference, rise
from selftaught.evaluation.watch import Alarm
from selftaught.ranks import summed
from selftaught.train.distributed import Ranks

LOG = "retention.jsonl"
START = "retention.safetensors"
SAMPLES = 512
LEAST = 64
K = 10
_GROUP = 16  # samples of one loss: contrastive tasks need company, and an interval needs many groups
_EVERY = 4  # health measures between two looks: each encodes about six times the samples of one
_STEP = 1 << 40  # the key of held-out masks and views: a step that no run reaches, so they are the same at every look
_KEPT = 0.1
_WORTH = 0.02  # a rise of the loss, or a fall of the accuracy, below this is no news even where it is certain


class Samples(NamedTuple):
    """Samples of a source, at int64 positions `rows` in it."""

    source: Source
    rows: np.ndarray


def drawn(source: Source, rows: np.ndarray, seed: int) -> Samples:
    """At most SAMPLES of the samples at `rows`, of a long text or of copies one; drawn by `seed`."""
    _, first = np.unique(source.hashes[rows], return_index=True)
    return Samples(source, rows[first[rng.permutation(len(first), seed, 7)[:SAMPLES]]])


class Look(NamedTuple):
    """What is measured at one step: losses of groups of samples, and the general samples' neighbours."""

    general: Tensor | None
    domain: Tensor | None
    neighbours: Tensor


class Guard:
    """Before training, every few health measures and at its end: the task's loss on held-out domain and general data, and
    the share of the general samples' K nearest neighbours, in the starting encoder's features, that are among the K nearest
    still (mutual k-NN, Huh et al. 2024, "The Platonic Representation Hypothesis", arXiv 2405.07987). Where the general data
    has labels, those neighbours' vote is scored as well.

    The task is in evaluation mode, masks and views are always the same. The figures go to retention.jsonl. An alarm is
    raised, in words, where the general loss is above the lowest it had, or the vote worse than at the start, by more than
    the noise of the samples and by 2 %; and where next to no neighbour is kept, which alone is seen without labels where
    a head that begins fresh makes the loss fall.

    Raises UserError for fewer than LEAST general samples.
    """

    def __init__(self, general: Samples, domain: Samples, seed: int, every: int) -> None:
        if len(general.rows) < LEAST:
            raise UserError(
                f"--general holds {len(general.rows)} different samples that pretraining does not see; it needs {LEAST} or more"
            )
        self.general, self.domain, self.seed, self.every = general, domain, seed, every * _EVERY

    def look(self, trainer: Any, step: int, run: Any, meter: Any) -> str | None:
        """Measure, log, and raise an alarm where the figures call for one. Every rank calls it."""
        with trainer.measuring():
            general, domain = (self._losses(trainer, samples) for samples in (self.general, self.domain))
            now = Look(general, domain, self._neighbours(trainer))
        if not run.writes:
            return None
        if step == 0:
            with disk.replacing(run.path / START) as file:
                save_file({"neighbours": now.neighbours.to(torch.int32)}, file)
        start = _start(run.path / START)
        row: dict[str, Any] = {"step": step, "neighbours_kept": kept(start, now.neighbours)}
        row |= {
            f"{n}_loss": None if x is None else x.mean().item()
            for n, x in (("general", now.general), ("domain", now.domain))
        }
        # Each of them but the last puts figures into the row.
        alarms = self._by_loss(now, row, run.rows(LOG)), self._by_vote(now, row, start), self._by_neighbours(row)
        run.append(LOG, row)
        alarm = next(filter(None, alarms), None)
        if alarm is not None and alarm.kind not in {r["name"] for r in run.rows("alarms.jsonl")}:
            words = {"seen": alarm.seen, "cause": alarm.cause, "remedy": alarm.remedy}
            run.append("alarms.jsonl", {"step": step, "name": alarm.kind, **words})
            meter.say(f"ALARM: {alarm}")
        loss = "" if now.general is None else f"general loss {row['general_loss']:.3f}  "
        return f"{loss}neighbours kept {row['neighbours_kept']:.2f}"

    def _batches(self, samples: Samples, size: int, device: torch.device, ranks: Ranks) -> list[Batch]:
        """The samples in groups of `size` or a few more; of each this rank's part, which is as large on every rank."""
        groups = np.array_split(samples.rows, max(1, len(samples.rows) // size))
        parts = [g[: len(g) // ranks.world * ranks.world].reshape(ranks.world, -1)[ranks.rank] for g in groups]
        return [
            Batch(samples.source.fetch(p), torch.from_numpy(p), self.seed, _STEP).to(device) for p in parts if len(p)
        ]

    def _losses(self, trainer: Any, samples: Samples) -> Float[Tensor, " groups"] | None:
        """The pretext loss of each group; None for a task that reads labels, and for too few samples.

        On several ranks each has a part of the group, because a loss that compares samples gathers all ranks' rows: with the
        whole group on each, a sample's copies would be among its negatives.
        """
        ranks = trainer.ranks
        size = max(_GROUP, 2 * ranks.world)  # one sample of a rank would have nobody to be compared with
        if trainer.task.supervised or len(samples.rows) < 2 * size:
            return None
        batches = self._batches(samples, size, trainer.device, ranks)
        losses = torch.stack([trainer.model(batch).loss.double() for batch in batches])
        return (summed(losses) / ranks.world).cpu()

    def _neighbours(self, trainer: Any) -> Int[Tensor, "n k"]:
        task = trainer.task
        batches = self._batches(self.general, 256, trainer.device, Ranks())
        return nearest(torch.cat([task.encoder(task.modality.plain(b)).pooled.float().cpu() for b in batches]))

    def _by_loss(self, now: Look, row: dict[str, Any], before: list[dict[str, Any]]) -> Alarm | None:
        """Against the lowest so far: a head that begins fresh has a loss at the start that says nothing."""
        if now.general is None:
            return None
        row["general_losses"] = now.general.tolist()
        lowest = min([*before, row], key=lambda r: (r["general_loss"], r["step"]))
        found = rise(torch.tensor(lowest["general_losses"], dtype=torch.float64), now.general, seed=self.seed)
        row |= {"rise": found.value, "rise_low": found.low, "rise_high": found.high}
        if found.low <= 0 or found.value <= _WORTH:
            return None
        seen = f"the loss on general data is {_percent(found)} above that of step {lowest['step']}"
        return _alarm(row, f"{seen}, and {row['neighbours_kept']:.0%} of its nearest neighbours are kept")

    def _by_vote(self, now: Look, row: dict[str, Any], start: Tensor) -> Alarm | None:
        labels = self.general.source.labels
        if labels is None or (labels[self.general.rows] < 0).any() or len(np.unique(labels[self.general.rows])) < 2:
            return None
        truth = torch.from_numpy(labels[self.general.rows])
        then, here = (votes(x, truth) for x in (start, now.neighbours))
        row["general_knn"] = here.double().mean().item()
        lost = difference(then[None], here[None], seed=self.seed)
        if lost.low <= 0 or lost.value <= _WORTH:
            return None
        figures = f"to {row['general_knn']:.1%} from {then.double().mean():.1%}: by {_percent(lost)} of the samples"
        return _alarm(row, f"k-NN accuracy on general data fell {figures}")

    def _by_neighbours(self, row: dict[str, Any]) -> Alarm | None:
        limit = max(_KEPT, 2 * K / (len(self.general.rows) - 1))
        if row["neighbours_kept"] >= limit:
            return None
        return _alarm(
            row, f"{row['neighbours_kept']:.0%} of general samples' nearest neighbours are kept, hardly above chance"
        )


def _alarm(row: dict[str, Any], seen: str) -> Alarm:
    return Alarm(
        "forgetting", row["step"], seen,
        "the new data is taught over what the starting weights knew",
        "lower --lr, take fewer steps, or mix general data into DATA",
    )  # fmt: skip


def _percent(found: Interval) -> str:
    return f"{found.value:.1%} (95 % interval {found.low:.1%} to {found.high:.1%})"


def _start(file: Any) -> Tensor:
    if not file.is_file():
        raise UserError(
            f"'{file}' is missing, so what the starting weights knew is not known; begin again with another --out"
        )
    return load_file(file)["neighbours"].long()


def nearest(features: Float[Tensor, "n d"], k: int = K) -> Int[Tensor, "n k"]:
    """Each sample's k nearest others by cosine."""
    z = F.normalize(features.double(), dim=1)
    return (z @ z.T).fill_diagonal_(-torch.inf).topk(k, dim=1).indices


def kept(before: Int[Tensor, "n k"], after: Int[Tensor, "n k"]) -> float:
    """Share of the neighbours before that are neighbours after; k / (n - 1) where the two have nothing to do with each other."""
    return float((before[:, :, None] == after[:, None, :]).any(2).double().mean())


def votes(neighbours: Int[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Whether the commonest label among a sample's neighbours is its own; ties go to the smaller label."""
    return torch.mode(labels[neighbours], dim=1).values == labels
