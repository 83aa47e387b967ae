"""What the rows of a label-efficiency curve mean, in plain sentences and as a structured outcome."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from selftaught.evaluation.efficiency import BASELINES, MEASURES, Row

_NAMES = {"random_init": "random initialisation", "raw": "raw features"}
_TITLES = {"linear_probe": "linear probe", "knn": "kNN"}

Outcome = Literal["better", "worse", "unproven"]


class Comparison(NamedTuple):
    """One feature set against one baseline at one number of labels; gain in accuracy with its 95 % interval."""

    measure: str
    features: str
    baseline: str
    labels_n: int
    outcome: Outcome
    gain: float
    low: float
    high: float
    labels: object = None  # the amount that was asked for: two amounts may come to as many labels


class Worth(NamedTuple):
    """`labels_n` labels with pretraining do what `equivalent` do without; None: the baseline never reaches it, not
    even with the `most` labels it was given."""

    labels_n: int
    value: float
    equivalent: int | None
    most: int


def compare(rows: Sequence[Row], measure: str = "linear_probe", features: str = "pretrained") -> list[Comparison]:
    """The feature set against every baseline at every number of labels, few labels first.

    The paired interval of row["against"] decides where there is one. Without it (rows of another source) the two
    single intervals must not overlap, which is stricter.
    """
    result = []
    for row in _line(rows, measure, features):
        for baseline in BASELINES:
            other = next((r for r in _line(rows, measure, baseline) if _amount(r) == _amount(row)), None)
            if other is None or baseline == features:
                continue
            gain = row["value"] - other["value"]
            paired = row.get("against", {}).get(baseline)
            low, high = paired[1:] if paired else (row["low"] - other["high"], row["high"] - other["low"])
            outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "unproven"
            found = Comparison(
                measure, features, baseline, row["labels_n"], outcome, gain, low, high, row.get("labels")
            )
            result.append(found)
    return result


def worth(
    rows: Sequence[Row], measure: str = "linear_probe", features: str = "pretrained", baseline: str = "random_init"
) -> Worth | None:
    """How many labels the baseline needs for what the feature set does with the fewest labels of the curve.

    The baseline's curve is interpolated in accuracy over log(labels). None where the curve has one point only, or
    where the baseline is as good at the fewest labels already.
    """
    line, base = _line(rows, measure, features), _line(rows, measure, baseline)
    if not line or len(base) < 2:
        return None
    labels_n, value = line[0]["labels_n"], line[0]["value"]
    if base[0]["labels_n"] > labels_n or base[0]["value"] >= value:
        return None
    most = base[-1]["labels_n"]
    for left, right in itertools.pairwise(base):
        if left["value"] < value <= right["value"]:
            share = (value - left["value"]) / (right["value"] - left["value"])
            log = math.log(left["labels_n"]) * (1 - share) + math.log(right["labels_n"]) * share
            return Worth(labels_n, value, round(math.exp(log)), most)
    return Worth(labels_n, value, None, most)


def verdict(rows: Sequence[Row], features: str = "pretrained") -> list[str]:
    """Short sentences: is it better than random initialisation, what is it worth in labels, do raw features win.

    From the linear probe where there is one, otherwise kNN.
    """
    measure = next((m for m in reversed(MEASURES) if _line(rows, m, features)), None)
    if measure is None:
        return [f"there are no figures of {features} features, so nothing can be said"]
    compared = compare(rows, measure, features)
    if not any(c.baseline == "random_init" for c in compared):
        return ["random initialisation was not measured, so no gain by pretraining can be claimed"]
    sentences = []
    for baseline in BASELINES:
        mine = [c for c in compared if c.baseline == baseline]
        if mine:
            sentences += _gain(rows, mine, baseline)
    value = worth(rows, measure, features)
    fewest = next(c for c in compared if c.baseline == "random_init")
    if value is not None and (fewest.labels_n, fewest.outcome) == (value.labels_n, "better"):
        sentences.append(_worth_sentence(value, _subject(features)))
    return sentences


def _gain(rows: Sequence[Row], compared: list[Comparison], baseline: str) -> list[str]:
    """One sentence for each run of label counts with the same outcome."""
    sentences = []
    for outcome in ("better", "worse", "unproven"):
        same = [c for c in compared if c.outcome == outcome]
        if not same:
            continue
        # The clearest case speaks for all; what is unproven is shown where it is least unproven.
        shown = max(same, key=lambda c: abs(c.gain))
        here, there = (_figure(rows, shown, name) for name in (shown.features, baseline))
        counts = _counts([c.labels_n for c in same])
        subject = _subject(shown.features)
        head = {
            "better": f"{subject} beats {_NAMES[baseline]} with {counts}",
            "worse": f"{_NAMES[baseline]} {'beat' if baseline == 'raw' else 'beats'} {subject} with {counts}",
            "unproven": f"no proof that {subject} helped over {_NAMES[baseline]} with {counts}",
        }[outcome]
        sentences.append(f"{head}: {here} vs {there} ({_TITLES[shown.measure]}, {shown.labels_n} labels)")
    return sentences


def _worth_sentence(value: Worth, subject: str) -> str:
    if value.equivalent is None:
        return (
            f"{subject} is worth more than {value.most - value.labels_n} labels: with {value.labels_n} labels it does "
            f"what random initialisation never reaches here, even with {value.most}"
        )
    return (
        f"{subject} is worth {max(0, value.equivalent - value.labels_n)} labels: with {value.labels_n} labels it does "
        f"what random initialisation needs {value.equivalent} for"
    )


def _subject(features: str) -> str:
    return "pretraining" if features == "pretrained" else features


def _figure(rows: Sequence[Row], shown: Comparison, features: str) -> str:
    wanted = shown.labels_n, repr(shown.labels)
    row = next(r for r in _line(rows, shown.measure, features) if _amount(r) == wanted)
    return f"{_short(row['value'])} [{_short(row['low'])}, {_short(row['high'])}]"


def _short(value: float) -> str:
    """.613, and 1.000."""
    return f"{value:.3f}".removeprefix("0")


def _counts(numbers: list[int]) -> str:
    return f"{', '.join(str(n) for n in dict.fromkeys(numbers))} labels"  # shares may have come to the same number


def _amount(row: Row) -> tuple[int, str]:
    """Which of the label budgets a row is of."""
    return row["labels_n"], repr(row.get("labels"))


def _line(rows: Sequence[Row], measure: str, features: str) -> list[Row]:
    """The accuracy curve of one feature set, few labels first."""
    mine = [r for r in rows if (r["measure"], r["features"], r["metric"]) == (measure, features, "accuracy")]
    return sorted(mine, key=lambda r: r["labels_n"])
