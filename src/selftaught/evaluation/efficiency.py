"""The label-efficiency curve: accuracy of frozen features against the number of labels, for every feature set alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from selftaught import rng
from selftaught.errors import UserError
from selftaught.evaluation.intervals import bootstrap, difference
from selftaught.evaluation.knn import K, choose_k, knn
from selftaught.evaluation.probe import linear_probe
from selftaught.evaluation.threads import one_thread

SHARES = (0.01, 0.05, 0.1, 1.0)
BASELINES = ("random_init", "raw")
MEASURES = ("knn", "linear_probe")

Features = Mapping[str, tuple[Tensor, Tensor]]


class Row(TypedDict):
    """One figure: a measure of one feature set at one number of labels, with its 95 % interval.

    labels: the share of the labels (float) or the labels per class (int) that was asked for; labels_n: how many that
    was. seeds: the draws' numbers. n: test samples. against: for each baseline measured with it, the paired
    difference [value, low, high] to that baseline (this minus the baseline).
    """

    measure: str
    features: str
    labels: float | int
    metric: str
    value: float
    low: float
    high: float
    seeds: list[int]
    n: int
    labels_n: int
    against: NotRequired[dict[str, list[float]]]


def draw_labels(labels: Int[Tensor, " n"], amount: float | int, *, seed: int, draw: int) -> Int[Tensor, " m"]:
    """Indices of a stratified draw of labelled samples, ascending; samples labelled below 0 are unlabelled.

    A float is a share of each class (rounded, at least one sample), an int is a number per class (at most all). Per
    class it is the beginning of a permutation that depends on (seed, draw, class, class size) alone: a draw of few
    labels is contained in the same draw of more.
    """
    chosen = []
    for c in torch.unique(labels[labels >= 0]).tolist():
        members = (labels == c).nonzero()[:, 0].cpu()
        size = amount if isinstance(amount, int) else max(1, round(amount * len(members)))
        order = torch.from_numpy(rng.permutation(len(members), seed, draw, c)[:size])
        chosen.append(members[order])
    return torch.cat(chosen).sort().values


def curve(
    features: Features,
    train_labels: Int[Tensor, " n"],
    test_labels: Int[Tensor, " m"],
    *,
    shares: Sequence[float] = SHARES,
    counts: Sequence[int] = (),
    draws: int = 5,
    seed: int = 0,
    measures: Sequence[str] = MEASURES,
    done: Sequence[Row] = (),
    save: Callable[[Row], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Rows of every measure of every feature set at every number of labels, in the order they are measured.

    features: name -> (train [n, d], test [m, d]). All sets meet the same draws and the same test samples; all labels
        at once are one draw. Test samples labelled below 0 are left out.
    done: rows of an earlier, interrupted call with the same arguments; they are returned as they are, not measured
        again. save(row) is called after each new row, progress(rows done, rows in all) after each row.
    kNN takes k = 200 as published where all labels are used, and chooses k by leave-one-out on fewer.
    """
    amounts = _amounts(features, train_labels, test_labels, shares, counts, draws)
    unknown = [m for m in measures if m not in MEASURES]
    if unknown:
        raise UserError(f"measure '{unknown[0]}' is not known; use {' or '.join(MEASURES)}")
    # By repr: 1 (a label per class) and 1.0 (all labels) are equal as numbers.
    known = {(r["measure"], r["features"], repr(r["labels"])): r for r in done}
    # Baselines first: each later set is compared with them, pair by pair.
    names = [b for b in BASELINES if b in features] + [f for f in features if f not in BASELINES]
    rows: list[Row] = []
    total = len(amounts) * len(measures) * len(names)
    for amount in amounts:
        picks = _draws(train_labels, amount, draws, seed)
        for measure in measures:
            correct: dict[str, Tensor] = {}
            for name in names:
                row = known.get((measure, name, repr(amount)))
                if row is None:
                    # A baseline whose row was saved earlier is measured again only where a comparison needs it.
                    for needed in dict.fromkeys([*(BASELINES if name not in BASELINES else ()), name]):
                        if needed in features and needed not in correct:
                            correct[needed] = _correct(
                                measure, features[needed], train_labels, test_labels, picks, amount, seed
                            )
                    row = _row(measure, name, amount, correct, picks, seed)
                    if save is not None:
                        save(row)
                rows.append(row)
                if progress is not None:
                    progress(len(rows), total)
    return rows


def _row(
    measure: str, name: str, amount: float | int, correct: dict[str, Tensor], picks: list[Tensor], seed: int
) -> Row:
    value, low, high = bootstrap(correct[name], seed=seed)
    row = Row(
        measure=measure, features=name, labels=amount, metric="accuracy", value=value, low=low, high=high,
        seeds=list(range(len(picks))), n=correct[name].shape[1], labels_n=len(picks[0]),
    )  # fmt: skip
    if name not in BASELINES:
        row["against"] = {b: list(difference(correct[name], correct[b], seed=seed)) for b in BASELINES if b in correct}
    return row


def _correct(
    measure: str,
    features: tuple[Tensor, Tensor],
    train_labels: Tensor,
    test_labels: Tensor,
    picks: list[Tensor],
    amount: float | int,
    seed: int,
) -> Bool[Tensor, "draws m"]:
    """Which test samples each draw's classifier gets right."""
    kept = test_labels >= 0
    train, test = features[0], features[1][kept]
    answers = []
    for index in picks:
        x, y = train[index], train_labels[index]
        if measure == "linear_probe":
            predicted = linear_probe(x, y, seed=seed).predict(test)
        else:
            everything = isinstance(amount, float) and amount >= 1
            with one_thread(x.numel()):
                predicted = knn(x, y, test, k=K if everything else choose_k(x, y, seed=seed))
        answers.append((predicted == test_labels[kept]).cpu())
    return torch.stack(answers)


def _draws(labels: Tensor, amount: float | int, draws: int, seed: int) -> list[Tensor]:
    first = draw_labels(labels, amount, seed=seed, draw=0)
    if len(first) == int((labels >= 0).sum()):
        return [first]
    return [first] + [draw_labels(labels, amount, seed=seed, draw=i) for i in range(1, draws)]


def _amounts(
    features: Features,
    train_labels: Tensor,
    test_labels: Tensor,
    shares: Sequence[float],
    counts: Sequence[int],
    draws: int,
) -> list[float | int]:
    """The numbers of labels asked for, few first, after every check that could fail later.

    Of small data several come to the same draws (of ten samples a class, 1 %, 5 % and 10 % are one each): the largest share
    of them stands for all.
    """
    if draws < 1:
        raise UserError(f"draws is {draws}, it must be at least 1; use --draws 5")
    for share in shares:
        if not 0 < share <= 1:
            raise UserError(f"label share {share} is not within (0, 1]; use for example 0.01 for 1 %")
    for count in counts:
        if count < 1:
            raise UserError(f"{count} labels per class, it must be at least 1; use for example 10")
    for name, (train, test) in features.items():
        if len(train) != len(train_labels) or len(test) != len(test_labels):
            raise UserError(
                f"features '{name}' have {len(train)} training and {len(test)} test rows, "
                f"the labels {len(train_labels)} and {len(test_labels)}; give one label per row"
            )
        if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
            raise UserError(f"features '{name}' hold NaN or infinity; the encoder is broken, use an earlier checkpoint")
    known = set(torch.unique(train_labels[train_labels >= 0]).tolist())
    tested = set(torch.unique(test_labels[test_labels >= 0]).tolist())
    if len(known) < 2:
        raise UserError(f"the training labels hold {len(known)} class, at least 2 are needed; label more samples")
    if not tested:
        raise UserError("no test sample has a label; give a labelled test part")
    if tested - known:
        missing = sorted(tested - known)
        raise UserError(f"class {missing[0]} is in the test part but not among the training labels; add it or drop it")
    amounts: list[float | int] = [*sorted(map(int, counts)), *sorted(map(float, shares))]
    drawn = {draw_labels(train_labels, a, seed=0, draw=0).numpy().tobytes(): a for a in amounts}
    return [drawn[indices] for indices in sorted(drawn, key=len)]
