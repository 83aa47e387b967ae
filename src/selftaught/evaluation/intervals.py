"""95 % intervals for accuracies measured on a finite test part with labelled sets drawn at random."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import binomtest
from scipy.stats import t as student
from torch import Tensor

from selftaught import rng
from selftaught.evaluation.threads import one_thread

RESAMPLES = 1000
_Z = 1.959964  # the 97.5 % quantile of the normal distribution
_CHUNK = 1 << 22  # resampled indices held at once


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def wilson(right: float, n: int) -> Interval:
    """Wilson (1927) score interval of a proportion: `right` of `n`; honest at 0 and 1, where a bootstrap has no width."""
    p = right / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (p * (1 - p) / n + _Z**2 / (4 * n**2)) ** 0.5
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def bootstrap(correct: Bool[Tensor, "draws n"], *, seed: int = 0) -> Interval:
    """Accuracy and its 95 % interval over both sources of chance: the labelled sets drawn and the test samples.

    Hierarchical percentile bootstrap: each of 1000 resamples takes test samples with replacement, the same ones for
    every draw (they were measured on the same test part), and draws with replacement. A handful of draws says little
    about their own spread, so the draws' deviations are widened by sqrt(D / (D - 1)) t(D - 1) / z: where the draws
    dominate, the interval is Student's. With one draw only the test samples count. A function of `seed`.
    """
    mean = float(correct.double().mean())
    resampled = _resample(correct.double(), seed)
    low, high = np.quantile(resampled, [0.025, 0.975])
    if low == high:  # every answer right, or every one wrong
        return wilson(mean * correct.shape[1], correct.shape[1])
    return Interval(mean, float(max(0.0, low)), float(min(1.0, high)))


def difference(a: Bool[Tensor, "draws n"], b: Bool[Tensor, "draws n"], *, seed: int = 0) -> Interval:
    """Accuracy of `a` minus that of `b`, with the 95 % interval of `bootstrap`, paired by draw and test sample.

    What both find easy or hard cancels, so this proves differences that two overlapping single intervals hide.
    `a` beats `b` where low > 0. Resamples alone would find that where four samples differ, all in favour of `a`, however many
    there are, in one draw or in draws that are alike; so the interval holds zero unless McNemar's exact test, on whom each
    sample favours over the draws, refutes it as well.
    """
    gap = a.double() - b.double()
    low, high = np.quantile(_resample(gap, seed), [0.025, 0.975])
    favour = gap.sum(0)
    more, fewer = int((favour > 0).sum()), int((favour < 0).sum())
    if more == fewer or binomtest(more, more + fewer).pvalue >= 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(float(gap.mean()), float(low), float(high))


def ratio(total: Float[Tensor, " n"], weight: Float[Tensor, " n"], *, seed: int = 0) -> Interval:
    """sum(total) / sum(weight) over n documents, and its 95 % interval: a percentile bootstrap that draws whole documents,
    because the tokens of one are not independent. A function of `seed`."""
    both = torch.stack([total, weight], 1).double().cpu()
    with one_thread(0):
        sums = torch.cat([count @ both for count in resamples(len(both), seed)])
    low, high = np.quantile((sums[:, 0] / sums[:, 1]).numpy(), [0.025, 0.975])
    return Interval(float(both[:, 0].sum() / both[:, 1].sum()), float(low), float(high))


def resamples(n: int, seed: int = 0) -> Iterator[Float[Tensor, "k n"]]:
    """How often each of n samples is in each of 1000 resamples with replacement, some resamples at a time."""
    for _, samples in _resampled(n, seed):
        yield _counted(samples, n)


def _resampled(n: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of resamples [k], and the samples [k, n] drawn for each; a function of the seed."""
    for rows in torch.arange(RESAMPLES).split(max(1, _CHUNK // n)):
        yield rows, (rng.uniform(rng.fold(seed, 1), rows, n).double() * n).long()


def _counted(samples: Tensor, n: int) -> Tensor:
    count = torch.zeros(len(samples), n, dtype=torch.float64)
    return count.scatter_add_(1, samples, torch.ones_like(samples, dtype=torch.float64))


def rise(before: Float[Tensor, " n"], after: Float[Tensor, " n"], *, seed: int = 0) -> Interval:
    """How far the mean of a loss rose, as a share of what it was, with the 95 % interval over samples, paired by them."""
    before, after = before.double(), after.double()
    scale = max(float(before.mean().abs()), 1e-12)
    low, high = np.quantile(_resample((after - before)[None], seed), [0.025, 0.975])
    return Interval(float((after - before).mean()) / scale, float(low) / scale, float(high) / scale)


def _resample(score: Float[Tensor, "draws n"], seed: int) -> np.ndarray:
    """Means [1000] of resampled scores: draws and test samples with replacement, draw deviations widened."""
    draws, n = score.shape
    score = score.cpu()
    widen = (draws / (draws - 1)) ** 0.5 * float(student.ppf(0.975, draws - 1)) / _Z if draws > 1 else 1.0
    means = []
    with one_thread(0):
        for rows, samples in _resampled(n, seed):
            per_draw = _counted(samples, n) @ score.T / n
            chosen = (rng.uniform(rng.fold(seed, 2), rows, draws).double() * draws).long()
            centre = per_draw.mean(1)
            means.append(centre + widen * (per_draw.gather(1, chosen).mean(1) - centre))
    return torch.cat(means).numpy()
