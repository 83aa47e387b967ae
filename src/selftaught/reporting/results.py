"""The rows of evaluation.json as lines of a table: one per measure and number of labels, one cell per features."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

PRETRAINED, RANDOM, RAW, UNIGRAM = "pretrained", "random_init", "raw", "unigram"
BASELINES = (RANDOM, RAW, UNIGRAM)
_NAMES = {RANDOM: "random init", RAW: "raw input", UNIGRAM: "token frequency"}
_NAMES |= {"itemknn": "ItemKNN", "ease": "EASE", "svd": "PureSVD"}
_MEASURES = {"linear_probe": "Linear probe", "knn": "k-NN"}
_METRICS = {"nmi": "NMI", "ari": "ARI", "map": "mAP", "bleu": "BLEU", "chrf": "chrF", "ndcg@10": "nDCG@10"}
_METRICS |= {
    f"{m}@{k}": f"{t}@{k}" for m, t in (("hr", "HR"), ("ndcg", "nDCG"), ("recall", "Recall")) for k in (5, 10, 20)
}
_METRICS |= {"mrr": "MRR"}
_LOWER_IS_BETTER = {"loss", "nll", "masked_loss", "perplexity", "pseudo_perplexity", "bits_per_byte"}
_LOWER_IS_BETTER |= {"error", "mae", "mse", "rmse"}
_SHARES = ("accuracy", "balanced_accuracy", "recall", "precision", "hit", "top1", "top5")


@dataclass(frozen=True)
class Cell:
    """One measured figure with its 95 % interval (None where the evaluation gave none)."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    n: int | None


@dataclass(frozen=True)
class Line:
    """All features measured in one way: same measure, metric and number of labels."""

    measure: str
    metric: str
    labels_n: int | None
    share: float | None
    per_class: int | None = None
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def lower_is_better(self) -> bool:
        return self.metric in _LOWER_IS_BETTER

    @property
    def title(self) -> str:
        return _MEASURES.get(self.measure, self.measure.replace("_", " ").capitalize())

    @property
    def labels(self) -> str:
        """The number of labels in words: '500 (1 %)'."""
        if self.labels_n is None:
            return "–" if self.share is None else share(self.share)
        if self.labels_n == 0:
            return "none"
        if self.per_class is not None and self.per_class != self.labels_n:
            return f"{self.labels_n:,} ({self.per_class} a class)"
        if self.share is None:
            return f"{self.labels_n:,}"
        return f"{self.labels_n:,} ({'all' if self.share == 1 else share(self.share)})"

    def best(self) -> list[str]:
        """The best features first, then those whose interval reaches the best one's: they cannot be told apart.

        Overlapping 95 % intervals are a cautious test: what it separates is separated, not the other way round.
        """
        if not self.cells:
            return []
        sign = -1 if self.lower_is_better else 1
        order = sorted(self.cells, key=lambda name: -sign * self.cells[name].value)
        top = self.cells[order[0]]
        return [name for name in order if name == order[0] or _overlap(top, self.cells[name])]

    def gain(self) -> tuple[float, str, bool] | None:
        """(pretrained minus the best baseline, that baseline, whether the intervals are apart); positive is better."""
        # Of rankings, everything beside the encoder is a baseline: popularity as much as random initialisation.
        known = [n for n in self.cells if n != PRETRAINED] if self.measure == "ranking" else BASELINES
        baselines = [name for name in known if name in self.cells]
        if PRETRAINED not in self.cells or not baselines:
            return None
        sign = -1 if self.lower_is_better else 1
        name = max(baselines, key=lambda name: sign * self.cells[name].value)
        mine, other = self.cells[PRETRAINED], self.cells[name]
        return sign * (mine.value - other.value), name, not _overlap(mine, other)


def _overlap(a: Cell, b: Cell) -> bool:
    """Whether two intervals meet; a figure without an interval is a point, so only equality ties."""
    a_low, a_high = (a.value if a.low is None else a.low), (a.value if a.high is None else a.high)
    b_low, b_high = (b.value if b.low is None else b.low), (b.value if b.high is None else b.high)
    return a_low <= b_high and b_low <= a_high


def number(value: Any) -> float | None:
    """A finite float, or None for anything else (null, NaN, text, true)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def lines(evaluation: dict[str, Any]) -> list[Line]:
    """The table's lines, by measure in order of appearance, then by number of labels, most first."""
    found: dict[tuple[str, str, int | None, float | None, int | None], Line] = {}
    rows = evaluation.get("rows")
    for row in rows if isinstance(rows, list) else []:
        value = number(row.get("value")) if isinstance(row, dict) else None
        if value is None:
            continue
        count, labels = number(row.get("labels_n")), row.get("labels")
        # 1.0 is all labels and 1 is one label a class: the number's type tells, in JSON too
        part = labels if isinstance(labels, float) and 0 < labels <= 1 else None
        each = labels if type(labels) is int else None
        measure, metric = str(row.get("measure", "score")), str(row.get("metric", "accuracy"))
        labels_n = int(count) if count is not None else each
        key = (measure, metric, labels_n, part, each)
        line = found.setdefault(key, Line(measure, metric, labels_n, part, each))
        seeds = row.get("seeds")
        n = number(row.get("n"))
        line.cells[str(row.get("features", "?"))] = Cell(
            value,
            number(row.get("low")),
            number(row.get("high")),
            len(seeds) if isinstance(seeds, list) else 1,
            None if n is None else int(n),
        )
    order = list(dict.fromkeys((line.measure, line.metric) for line in found.values()))
    return sorted(
        found.values(), key=lambda x: (order.index((x.measure, x.metric)), -(x.labels_n or 0), -(x.share or 0))
    )


def features(table: list[Line]) -> list[str]:
    """The columns: pretrained first, then named encoders as they appear, then the two baselines."""
    names = list(dict.fromkeys(name for line in table for name in line.cells))
    named = [name for name in names if name != PRETRAINED and name not in BASELINES]
    return [name for name in (PRETRAINED, *named, *BASELINES) if name in names]


def feature_name(name: str) -> str:
    return _NAMES.get(name, name)


def metric_name(metric: str) -> str:
    return _METRICS.get(metric, metric.replace("_", " "))


def is_share(metric: str) -> bool:
    """Whether a metric is a share of samples, shown in per cent."""
    return metric.startswith(_SHARES)


def share(value: float) -> str:
    """A share in per cent with the digits it needs: 0.001 -> '0.1 %'."""
    return f"{100 * value:.3g} %"


def figure(value: float, metric: str) -> str:
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.3f}"


def interval(low: float | None, high: float | None, metric: str) -> str:
    """'[41.2, 43.0]' in the metric's unit, or '' where there is none."""
    if low is None or high is None:
        return ""
    scale, digits = (100, 1) if is_share(metric) else (1, 3)
    return f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def verdict(evaluation: dict[str, Any]) -> list[str]:
    sentences = evaluation.get("verdict")
    return [s for s in sentences if isinstance(s, str) and s.strip()] if isinstance(sentences, list) else []
