"""Do close features mean close texts? Spearman's correlation with gold scores, and retrieval with ties at expected rank."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from selftaught.evaluation.intervals import Interval, resamples

_ROWS = 256  # queries compared at once
CUT = 10


def cosine(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> np.ndarray:
    """The cosine of each pair; 0 where a feature is zero (a text without a known term)."""
    return (_unit(a) * _unit(b)).sum(1).numpy()


def _unit(x: Tensor) -> Tensor:
    return x.double() * x.double().square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt()


def spearman(found: np.ndarray, gold: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where either side is constant: it says nothing then."""
    a, b = (rankdata(x) - (len(x) + 1) / 2 for x in (found, gold))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def spearman_resampled(found: np.ndarray, gold: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Spearman's correlation on each of 1000 resamples of the pairs; equal seeds resample alike, for paired differences."""
    values = []
    for count in resamples(len(found), seed):
        for row in count.long().numpy():
            chosen = np.repeat(np.arange(len(found)), row)
            values.append(spearman(found[chosen], gold[chosen]))
    return np.array(values)


def retrieval(
    queries: Float[Tensor, "q d"], documents: Float[Tensor, "m d"], relevant: list[np.ndarray], cut: int = CUT
) -> dict[str, np.ndarray]:
    """Per query [q]: nDCG@cut with gains 0 and 1 (Jarvelin & Kekalainen 2002), recall@1 and recall@cut.

    relevant: for each query the positions of its documents, at least one. Documents of equal cosine are ranked as in the
    mean over their orders, so that constant features give the figure of chance.
    """
    discount = 1 / np.log2(np.arange(2, cut + 2))
    ideal = np.cumsum(discount)
    out: dict[str, list[float]] = {f"ndcg@{cut}": [], "recall@1": [], f"recall@{cut}": []}
    columns = _unit(documents).T
    for start in range(0, len(queries), _ROWS):
        scores = (_unit(queries[start : start + _ROWS]) @ columns).numpy().round(12)
        for row, own in zip(scores, relevant[start : start + _ROWS], strict=True):
            mine = row[own]
            ahead = (row[None] > mine[:, None]).sum(1)
            ties = (row[None] == mine[:, None]).sum(1)
            gain = np.array([discount[a : a + t].sum() / t for a, t in zip(ahead, ties, strict=True)])
            out[f"ndcg@{cut}"].append(float(gain.sum() / ideal[min(len(own), cut) - 1]))
            for k in (1, cut):
                inside = np.clip(k - ahead, 0, ties) / ties
                out[f"recall@{k}"].append(float(inside.mean()))
    return {name: np.array(values) for name, values in out.items()}


def means_resampled(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The mean over queries on each of 1000 resamples."""
    return np.concatenate([count.numpy() @ values / len(values) for count in resamples(len(values), seed)])


def interval(value: float, resampled: np.ndarray) -> Interval:
    """A figure and the middle 95 % of its resamples."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


Resampled = tuple[float, np.ndarray]


def measure_scored(a: Tensor, b: Tensor, gold: np.ndarray, *, seed: int = 0) -> dict[str, Resampled]:
    """Spearman's correlation of the cosine of each pair with its gold score, and its resamples."""
    found = cosine(a, b)
    return {"spearman": (spearman(found, gold), spearman_resampled(found, gold, seed=seed))}


def measure_retrieval(a: Tensor, b: Tensor, relevant: list[np.ndarray], *, seed: int = 0) -> dict[str, Resampled]:
    """Each figure of `retrieval`, its mean over queries and the resamples of that."""
    found = retrieval(a, b, relevant)
    return {name: (float(v.mean()), means_resampled(v, seed=seed)) for name, v in found.items()}
