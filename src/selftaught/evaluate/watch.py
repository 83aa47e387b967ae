"""The watchdog: names a dead or dying run from its health and loss, with the likely cause and the remedy.

Every threshold is relative to the run's own beginning and to the size of what is measured, because healthy features
differ widely: those of a random ReLU network already share one direction (cosine .99, low rank), a 16-wide encoder
cannot have rank 20. An alarm on the representation needs the last two measures to be bad: early ones are noisy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from selftaught.evaluate.health import HealthRow

# Complete collapse: the normalised features lost two thirds of the spread they had, are not regaining it, and keep
# less than any healthy run shows. Measured: SimSiam dips to a half and recovers; without stop-gradient it falls to a
# third within 100 steps and goes on falling.
_SPREAD_LEFT = 1 / 3
_SPREAD_LOW = 0.25
_REGAINING = 1.02
# Dimensional collapse: under a third of the highest rank seen, and under 5 % of what width and samples allow.
_RANK_LEFT = 1 / 3
_RANK_SHARE = 0.05
_CHANCE_STEPS = 300  # a warm-up may sit at chance for a while
_CHANCE_NEAR = 0.01
_DIVERGED = 3.0
_BOUNDED = 5.0  # cosine losses never exceed 4: below 5 nothing is called divergence
_WINDOW = 25
_STILL_MEASURES = 4
_STILL = 1e-4


@dataclass(frozen=True)
class Alarm:
    """What is wrong (kind, seen), why that usually happens (cause) and what to do (remedy); `str` is one line."""

    kind: str
    step: int
    seen: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.kind}: {self.seen}. Likely cause: {self.cause}. Remedy: {self.remedy}."


def diagnose(history: Sequence[HealthRow], losses: Sequence[float], chance: float | None = None) -> Alarm | None:
    """The first thing that is wrong with a run, or None.

    history: measures of the same samples from step 0 on (the first one, before training, is what the others are held
        against), best of the projector's or encoder's output that the loss acts on. losses: one per step since step
        0. chance: the loss of a model that knows nothing (log(2N - 1) for SimCLR with N samples, log 4 for rotation);
        None where the pretext has none.
    """
    return (
        _not_finite(history, losses)
        or _diverging(losses, chance)
        or _complete(history)
        or _dimensional(history)
        or _still(history)
        or _at_chance(losses, chance)
    )


def _not_finite(history: Sequence[HealthRow], losses: Sequence[float]) -> Alarm | None:
    step = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if step is None:
        step = next((row.step for row in history if not math.isfinite(row.rank + row.std)), None)
    if step is None:
        return None
    return Alarm(
        "non-finite values", step, "the loss or the features are NaN or infinite",
        "the learning rate is too high, or half precision overflowed",
        "resume from the last checkpoint with a third of the learning rate, or train in float32",
    )  # fmt: skip


def _diverging(losses: Sequence[float], chance: float | None) -> Alarm | None:
    if len(losses) < 3 * _WINDOW:
        return None
    # Two windows in a row, medians: one bad batch is no divergence.
    recent = min(median(losses[-2 * _WINDOW : -_WINDOW]), median(losses[-_WINDOW:]))
    limit = max(_DIVERGED * max(abs(x) for x in [*losses[:_WINDOW], chance or 0.0]), _BOUNDED)
    if recent <= limit:
        return None
    return Alarm(
        "diverging loss", len(losses) - 1, f"the loss rose to {losses[-1]:.3g} from {losses[0]:.3g} at the start",
        "the learning rate is too high for this batch size, or the warm-up is too short",
        "start again with a third of the learning rate or a longer warm-up",
    )  # fmt: skip


def _complete(history: Sequence[HealthRow]) -> Alarm | None:
    if len(history) < 3:
        return None
    # The initial spread, not the highest: spread may rise to 1 and settle lower in a healthy run.
    start = history[0].std
    last = history[-2:]
    limit = max(min(_SPREAD_LEFT * start, _SPREAD_LOW), 1e-4)
    if any(row.std >= limit for row in last) or last[1].std > max(_REGAINING * last[0].std, 1e-4):
        return None
    return Alarm(
        "complete collapse", last[-1].step,
        f"all samples get nearly the same feature: spread {last[-1].std:.2g}, {start:.2g} at the start (1 is healthy)",
        "the loss can be met by a constant: a missing stop-gradient or predictor, no negatives, a target that follows "
        "too fast, or too high a learning rate",
        "keep stop-gradient and predictor, raise the target's momentum, lower the learning rate, or use a contrastive "
        "or variance-regularised pretext",
    )  # fmt: skip


def _dimensional(history: Sequence[HealthRow]) -> Alarm | None:
    if len(history) < 3:
        return None
    peak = max(row.rank for row in history)
    for row in history[-2:]:
        sizes = [size for size in (row.width, row.samples) if size is not None]
        room = min(sizes) if sizes else peak
        if row.rank >= min(_RANK_LEFT * peak, max(_RANK_SHARE * room, 2.0)):
            return None
    last = history[-1]
    return Alarm(
        "dimensional collapse", last.step,
        f"the features keep {last.rank:.1f} effective dimensions, they had {peak:.1f}",
        "a few directions satisfy the loss: too strong augmentation or weight decay, too few negatives, too low a "
        "temperature, or too high a learning rate",
        "weaken augmentation or weight decay, enlarge the batch, add a projection head, or use a variance-covariance "
        "regularised pretext",
    )  # fmt: skip


def _still(history: Sequence[HealthRow]) -> Alarm | None:
    rows = history[-_STILL_MEASURES:]
    if len(rows) < _STILL_MEASURES:
        return None
    first = rows[0]
    if any(
        abs(row.rank - first.rank) > _STILL * abs(first.rank) or abs(row.std - first.std) > _STILL * abs(first.std)
        for row in rows
    ):
        return None
    return Alarm(
        "representation not moving", rows[-1].step,
        f"rank {first.rank:.4g} and spread {first.std:.4g} have not changed since step {first.step}",
        "no gradient reaches the encoder: frozen or unregistered parameters, a detached path, or a learning rate of 0",
        "check the learning rate and its schedule, and that the optimiser holds the encoder's parameters",
    )  # fmt: skip


def _at_chance(losses: Sequence[float], chance: float | None) -> Alarm | None:
    if chance is None or len(losses) < _CHANCE_STEPS:
        return None
    third = _CHANCE_STEPS // 3
    means = [fmean(losses[len(losses) - (i + 1) * third : len(losses) - i * third]) for i in range(3)]
    if any(abs(mean - chance) > _CHANCE_NEAR * abs(chance) for mean in means):
        return None
    if means[2] - means[0] > 0.2 * _CHANCE_NEAR * abs(chance):  # slowly, but it learns
        return None
    return Alarm(
        "loss stuck at chance", len(losses) - 1,
        f"the loss has stayed at {means[0]:.4g} for {_CHANCE_STEPS} steps, chance is {chance:.4g}",
        "nothing is learned: the features have collapsed, the learning rate is far too high or too low, or the views "
        "share nothing",
        "try a learning rate 10 times lower, then higher; look at the augmented views; check that they pair up",
    )  # fmt: skip
