"""What a corpus is like before any training: sizes, scripts, duplicates, leaks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selftaught.data.copies import LISTED, Leaks, class_counts, equal_groups, groups, leaks, named
from selftaught.data.near_texts import HEAD, near_between, near_within, sketches
from selftaught.data.texts import TextSource

_SAMPLE = 2000  # documents whose characters are counted
_SCRIPTS = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F)),
    "Chinese": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x3FFFF)),
    "Japanese": ((0x3040, 0x30FF),),
    "Korean": ((0xAC00, 0xD7AF), (0x1100, 0x11FF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Greek": ((0x370, 0x3FF),),
    "Arabic": ((0x600, 0x6FF),),
    "Hebrew": ((0x590, 0x5FF),),
    "Devanagari": ((0x900, 0x97F),),
    "Thai": ((0xE00, 0xE7F),),
}


@dataclass(frozen=True, kw_only=True)
class TextAudit(Leaks):
    """What `audit_texts` found. length: (smallest, median, largest) document in characters, of up to 2 000 of them, as
    are words (median, by white space) and scripts (shares of the letters). The rest counts everything, near_count the
    documents with a near duplicate that is not an exact one; lists name at most the first 100."""

    samples: int
    bytes: int
    classes: dict[str, int]
    unlabelled: int
    length: tuple[int, int, int]
    words: int
    scripts: dict[str, float]
    skipped_count: int
    skipped: list[tuple[str, str]]
    exact_extra: int
    exact: list[list[str]]
    conflicting: int
    near_count: int
    near: list[list[str]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def audit_texts(
    source: TextSource, other: TextSource | None = None, progress: Callable[[int], None] = lambda done: None
) -> TextAudit:
    """Look at a corpus and, for leaks, at another one (say, the training data of a test set).

    Exact duplicates have equal text, white space at the ends apart; for near ones see `near_texts`. conflicting: groups
    of exact ones with several labels. progress: is told the documents done, those of `other` after those of `source`.
    """
    some = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int))
    # One by one: a document may have a million characters.
    lengths, words, heads = zip(*((len(t), len(t.split()), t[:2000]) for t in source.texts(some)))
    equal = equal_groups(source.hashes)
    labels = source.labels
    counts = class_counts(source)
    different, keys = _sketched(source, progress)
    copies = {group[0]: group for group in equal}
    found = groups(len(source), *near_within(source, different, keys))
    near = [sorted(k for i in group for k in copies.get(i, [i])) for group in found]
    more: dict[str, Any] = {}
    if other is not None:
        there, keys_there = _sketched(other, lambda done: progress(len(source) + done))
        twin = near_between(source, different, keys, other, there, keys_there)
        more = leaks(source, other, {k: j for i, j in twin.items() for k in copies.get(i, [i])})
    return TextAudit(
        samples=len(source),
        bytes=int(source.sizes.sum()),
        classes=counts,
        unlabelled=len(source) - sum(counts.values()),
        length=(min(lengths), int(np.median(lengths)), max(lengths)),
        words=int(np.median(words)),
        scripts=scripts("".join(heads)),
        skipped_count=len(source.skipped),
        skipped=[(name, reason) for name, reason in source.skipped[:LISTED]],
        exact_extra=sum(len(group) - 1 for group in equal),
        exact=named(source, equal),
        conflicting=0 if labels is None else sum(len(set(labels[g].tolist()) - {-1}) > 1 for g in equal),
        near_count=sum(map(len, near)),
        near=named(source, near),
        **more,
    )


def _sketched(source: TextSource, progress: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
    """The first position of each different text, ascending, and their sketches."""
    different = np.sort(np.unique(source.hashes, return_index=True)[1])
    keys = sketches(source.texts(different, HEAD), lambda done: progress(int(different[done - 1]) + 1))
    if different[-1] + 1 < len(source):  # it ends in copies of earlier ones
        progress(len(source))
    return different, keys


def scripts(text: str) -> dict[str, float]:
    """Shares of the letters by script, largest first, those above 1 %."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = Counter(
        {s: int(sum(((codes >= a) & (codes <= b)).sum() for a, b in blocks)) for s, blocks in _SCRIPTS.items()}
    )
    total = sum(counts.values())
    return {name: round(n / total, 3) for name, n in counts.most_common() if n > total / 100}


def text_offers(found: TextAudit) -> dict[str, tuple[bool, str]]:
    """Whether the corpus has what a pretext task may want of it (`Pretext.wants`), and what it has.

    documents: a hundred different ones. variety: a few hundred, to tell apart. words: half of them at least eight words,
    or 16 characters, long.
    """
    unique = found.samples - found.exact_extra
    long_enough = found.words >= 8 or found.length[1] >= 16
    return {
        "documents": (unique >= 100, f"{unique} different documents" + ("" if unique >= 100 else "; 100 are needed")),
        "variety": (
            unique >= 300,
            f"{unique} different documents" + ("" if unique >= 300 else "; contrast needs a few hundred"),
        ),
        "words": (long_enough, f"{found.length[1]} characters in the median document"),
    }
