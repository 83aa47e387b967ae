"""What pairs of texts are like before anything is made of them: both sides, scores, copies, leaks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selftaught.data.copies import LISTED, equal_groups, named
from selftaught.data.text_audit import TextAudit, audit_texts
from selftaught.data.text_pairs import PairSource


@dataclass(frozen=True, kw_only=True)
class PairAudit:
    """What `audit_pairs` found. source, target: each side by itself, leaks included. scores: (smallest, median, largest), or
    None where there are none. exact_extra: copies of pairs beyond the first of each group. several_targets: source texts
    that stand beside different targets; several_sources the other way. same: pairs of a text and itself. Lists name at most
    the first 100."""

    pairs: int
    source: TextAudit
    target: TextAudit
    scores: tuple[float, float, float] | None
    skipped_count: int
    skipped: list[tuple[str, str]]
    exact_extra: int
    exact: list[list[str]]
    several_targets: int
    several_sources: int
    same: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def audit_pairs(
    pairs: PairSource, other: PairSource | None = None, progress: Callable[[int], None] = lambda done: None
) -> PairAudit:
    """Look at pairs and, for leaks, at other ones; progress is told the texts done, of one side after the other."""
    n, there = len(pairs), 0 if other is None else len(other)
    source = audit_texts(pairs.source, None if other is None else other.source, progress)
    target = audit_texts(pairs.target, None if other is None else other.target, lambda done: progress(n + there + done))
    both = np.stack([pairs.source.hashes, pairs.target.hashes], 1)
    different, of = np.unique(both, axis=0, return_inverse=True)
    equal = equal_groups(of.ravel())
    several = [int((np.unique(side, return_counts=True)[1] > 1).sum()) for side in different.T]
    scores = pairs.scores
    return PairAudit(
        pairs=n,
        source=source,
        target=target,
        scores=None if scores is None else (float(scores.min()), float(np.median(scores)), float(scores.max())),
        skipped_count=len(pairs.skipped),
        skipped=[(name, reason) for name, reason in pairs.skipped[:LISTED]],
        exact_extra=n - len(different),
        exact=named(pairs, equal),
        several_targets=several[0],
        several_sources=several[1],
        same=int((both[:, 0] == both[:, 1]).sum()),
    )
