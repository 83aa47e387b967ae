"""The watchdog: names a dead or dying run from its health and loss, with the likely cause and the remedy.

Every threshold is relative to the run's own beginning and to the size of what is measured, because healthy features
differ widely: those of a random ReLU network already share one direction (cosine .99, low rank), a 16-wide encoder
cannot have rank 20. An alarm on the representation needs the last two measures to be bad: early ones are noisy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from selftaught.evaluation.health import HealthRow

# Complete collapse: the normalised features lost two thirds of the spread they began with, or three quarters of the most
# they had, are not regaining it, and keep less than any healthy run shows. Measured: SimSiam dips to a half and
# recovers; without stop-gradient it falls to a third within 100 steps and goes on falling.
_SPREAD_LEFT = 1 / 3
_SPREAD_LEFT_OF_PEAK = 1 / 4
_SPREAD_LOW = 0.25
_SPREAD_NEVER = 0.05  # a projector may begin below this (.018 measured); healthy ones leave it within 25 steps
_REGAINING = 1.05
# Dimensional collapse: under a third of the highest rank seen, and under 5 % of what width and samples allow, in three
# measures and still not regaining it. Measured: SimCLR without BatchNorm healthily passes through rank 2 of 64.
_RANK_LEFT = 1 / 3
_RANK_SHARE = 0.05
_RANK_MEASURES = 3
_CHANCE_STEPS = 300  # a warm-up may sit at chance for a while
_CHANCE_NEAR = 0.01
_DIVERGED = 3.0
_BOUNDED = 5.0  # cosine losses never exceed 4: below 5 nothing is called divergence
_WINDOW = 25
_STILL_MEASURES = 4
_STILL = 1e-5


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


def diagnose(
    history: Sequence[HealthRow], losses: Sequence[float], chance: float | None = None, collapses: bool = True
) -> Alarm | None:
    """The first thing that is wrong with a run, or None.

    history: measures of the same samples from step 0 on; the first one, before training, is what the others are held
        against. Best of the output that the loss acts on (the projector's): an encoder with BatchNorm may keep its
        spread while the projector behind it has collapsed. losses: one per step since step
        0. chance: the loss of a model that knows nothing (log(2N - 1) for SimCLR with N samples, log 4 for rotation);
        None where the pretext has none. collapses: whether the loss could be met by one feature for all.
    """
    return (
        _not_finite(history, losses)
        or _diverging(losses, chance)
        or (_complete(history, losses) if collapses else None)
        or (_dimensional(history) if collapses else None)
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


def _complete(history: Sequence[HealthRow], losses: Sequence[float]) -> Alarm | None:
    if len(history) < 3:
        return None
    start, peak = history[0].std, max(row.std for row in history)
    before, last = history[-2:]
    limit = max(min(max(_SPREAD_LEFT * start, _SPREAD_LEFT_OF_PEAK * peak), _SPREAD_LOW), 1e-4)
    fallen = before.std < limit and last.std < limit and last.std <= max(_REGAINING * before.std, 1e-4)
    if not fallen and not (_saturated(losses) and peak < _SPREAD_NEVER and last.std <= _REGAINING * start):
        return None
    return Alarm(
        "complete collapse",
        last.step,
        f"all samples get nearly the same feature: spread {last.std:.2g}, at most {peak:.2g} before (1 is healthy)",
        "the loss can be met by a constant: a missing stop-gradient or predictor, no negatives, a target that follows "
        "too fast, or too high a learning rate",
        "keep stop-gradient and predictor, put BatchNorm into the projector, raise the target's momentum, lower the "
        "learning rate, or use a contrastive or variance-regularised pretext",
    )


def _saturated(losses: Sequence[float]) -> bool:
    """The loss fell and then stopped moving: what it asks for is met."""
    if len(losses) < 4 * _WINDOW:
        return False
    recent = losses[-2 * _WINDOW :]
    fall = fmean(losses[:3]) - fmean(recent)
    return fall > 0 and max(recent) - min(recent) < 0.02 * fall


def _dimensional(history: Sequence[HealthRow]) -> Alarm | None:
    if len(history) <= _RANK_MEASURES:
        return None
    peak = max(row.rank for row in history)
    rows = history[-_RANK_MEASURES:]
    sizes = [size for size in (rows[0].width, rows[0].samples) if size is not None]
    limit = min(_RANK_LEFT * peak, max(_RANK_SHARE * min(sizes, default=0), 2.0))
    if any(row.rank >= limit for row in rows) or rows[-1].rank > _REGAINING * min(row.rank for row in rows):
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
    """Since the start only: at the end of a schedule a healthy run stands still as well."""
    if len(history) < _STILL_MEASURES:
        return None
    first = history[0]
    for row in history:
        if abs(row.rank - first.rank) > _STILL * first.rank or abs(row.std - first.std) > _STILL * first.std:
            return None
    return Alarm(
        "representation not moving", history[-1].step,
        f"rank {first.rank:.4g} and spread {first.std:.4g} have not changed since the start",
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
