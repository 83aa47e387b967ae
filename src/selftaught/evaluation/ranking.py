"""Is what came next ranked high among all items? Each figure is its mean over all orders of items with equal scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln
from torch import Tensor

from selftaught.errors import RunStopped
from selftaught.evaluation.intervals import Interval
from selftaught.evaluation.similarity import interval, means_resampled

BUCKETS = ("head", "middle", "tail", "cold")
"""Of a target: items that make the first half of the training events, the next 30 %, the rest; items with no event."""


class Ranking:
    """Figures of many cases, added batch by batch. cuts: the k of HR@k, NDCG@k and Recall@k. popularity: training events of
    each item, int [V].

    HR@k: is one of the targets among the first k. Recall@k: what share of them is. NDCG@k: gains 0 and 1 (Jarvelin & Kekalainen
    2002). MRR: 1 / rank of the first target. Constant scores give the figures of chance.
    """

    def __init__(self, cuts: Sequence[int], popularity: np.ndarray) -> None:
        self.cuts, self.popularity = tuple(cuts), popularity
        self.names = [f"{m}@{k}" for m in ("hr", "ndcg", "recall") for k in self.cuts] + ["mrr"]
        self._values: list[np.ndarray] = []
        self._buckets: list[int] = []
        self._shown = np.zeros((len(self.cuts), len(popularity)), np.int64)  # how often an item is among the first k
        self._bucket = buckets(popularity)

    def add(self, scores: Float[Tensor, "b v"], targets: Sequence[np.ndarray], seen: Tensor | None = None) -> None:
        """Rank items by scores [B, V]; targets: the items each case asks for, each once; seen: bool [B, V], items that are not
        ranked, unless they are asked for."""
        if torch.isnan(scores).any():
            raise RunStopped("a score is NaN, so nothing can be ranked; the encoder is not to be used")
        scores = scores.float()
        asked = torch.zeros(scores.shape, dtype=torch.bool)
        row = torch.from_numpy(np.repeat(np.arange(len(targets)), [len(t) for t in targets]))
        column = torch.from_numpy(np.concatenate([np.asarray(t, np.int64) for t in targets]))
        asked[row, column] = True
        if seen is not None:
            scores = scores.masked_fill(seen & ~asked, -torch.inf)
        self._show(scores)
        mine = scores[row, column][:, None]
        ahead, ties = _counted(scores, row, mine)
        first = 0
        for target in targets:
            here = slice(first, first + len(target))
            first = here.stop
            self._values.append(self._case(ahead[here], ties[here]))
            self._buckets.append(int(self._bucket[target].min()))

    def _case(self, ahead: np.ndarray, ties: np.ndarray) -> np.ndarray:
        """Figures of one case: for each target the items ahead of it, and those level with it, itself included."""
        t, top = len(ahead), int(np.argmin(ahead))
        level = int((ahead == ahead[top]).sum())  # targets in the best tied group
        out = []
        for k in self.cuts:
            places = int(np.clip(k - ahead[top], 0, ties[top]))
            out.append(1 - _none(int(ties[top]), level, places))
        discount = 1 / np.log2(np.arange(2, max(self.cuts) + 2))
        sums = np.concatenate([[0], np.cumsum(discount)])
        for k in self.cuts:
            gain = (sums[np.minimum(ahead + ties, k)] - sums[np.minimum(ahead, k)]) / ties
            out.append(float(gain.sum() / sums[min(t, k)]))
        out += [float((np.clip(k - ahead, 0, ties) / ties).mean()) for k in self.cuts]
        out.append(_reciprocal(int(ahead[top]), int(ties[top]), level))
        return np.array(out)

    def _show(self, scores: Tensor) -> None:
        first = scores.topk(min(max(self.cuts), scores.shape[1]), 1)
        for i, k in enumerate(self.cuts):
            item = first.indices[:, :k][first.values[:, :k] > -torch.inf]
            self._shown[i] += np.bincount(item.numpy(), minlength=len(self.popularity))

    def values(self, name: str) -> np.ndarray:
        """A figure of each case, float64 [n], in the order they were added."""
        return np.stack(self._values)[:, self.names.index(name)]

    def figures(self, seed: int = 0) -> dict[str, tuple[float, np.ndarray]]:
        """Each figure: its mean over the cases, and that of 1000 resamples of them."""
        table = np.stack(self._values)
        return {n: (float(v.mean()), means_resampled(v, seed=seed)) for n, v in zip(self.names, table.T, strict=True)}

    def coverage(self) -> dict[str, float]:
        """By cut: the share of the catalogue that is among the first k of anyone."""
        return {f"coverage@{k}": float((shown > 0).mean()) for k, shown in zip(self.cuts, self._shown, strict=True)}

    def novelty(self) -> dict[str, float]:
        """By cut: the mean over what is recommended of -log2 of an item's share of the training events, one added to each."""
        share = (self.popularity + 1) / (self.popularity + 1).sum()
        return {
            f"novelty@{k}": float(-(shown * np.log2(share)).sum() / max(1, shown.sum()))
            for k, shown in zip(self.cuts, self._shown, strict=True)
        }

    def by_popularity(self, name: str) -> dict[str, dict[str, Any]]:
        """A figure by the bucket of a case's most popular target: its mean and how many cases."""
        value, bucket = self.values(name), np.array(self._buckets)
        return {
            b: {"value": float(value[bucket == i].mean()), "n": int((bucket == i).sum())}
            for i, b in enumerate(BUCKETS)
            if (bucket == i).any()
        }


def buckets(popularity: np.ndarray) -> np.ndarray:
    """The place in BUCKETS of each item, int64 [V], by its training events; ties by the item's place."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    share = before / max(1, popularity.sum())
    found = np.empty(len(popularity), np.int64)
    found[order] = np.where(popularity[order] == 0, 3, np.where(share < 0.5, 0, np.where(share < 0.8, 1, 2)))
    return found


def _counted(scores: Tensor, row: Tensor, mine: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For each target the items ahead of it and those level with it, itself included."""
    ahead, ties = [], []
    for r, m in zip(row.split(256), mine.split(256), strict=True):
        of = scores[r]
        ahead.append((of > m).sum(1))
        ties.append((of == m).sum(1))
    return torch.cat(ahead).numpy(), torch.cat(ties).numpy()


def _none(group: int, targets: int, places: int) -> float:
    """The probability that none of `targets` items of a tied group lies in its first `places`: hypergeometric."""
    if places > group - targets:
        return 0.0
    log = gammaln(group - targets + 1) - gammaln(group - targets - places + 1)
    return float(np.exp(log - gammaln(group + 1) + gammaln(group - places + 1)))


def _reciprocal(ahead: int, group: int, targets: int) -> float:
    """The mean of 1 / rank of the first of `targets` items in a tied group behind `ahead` items."""
    if targets == 1:
        return float((1 / np.arange(ahead + 1, ahead + group + 1)).mean())
    later = np.array([_none(group, targets, j) for j in range(group - targets + 2)])
    return float(((later[:-1] - later[1:]) / np.arange(ahead + 1, ahead + len(later))).sum())


def difference(a: Ranking, b: Ranking, name: str, seed: int = 0) -> Interval:
    """A figure of `a` minus that of `b`, paired by case, with its 95 % interval."""
    gap = a.values(name) - b.values(name)
    return interval(float(gap.mean()), means_resampled(gap, seed=seed))
