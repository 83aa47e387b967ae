"""What a corpus is like before any training: sizes, scripts, duplicates, leaks."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selftaught.data.texts import TextSource

_LISTED = 100  # groups and leaks that are named; all are counted
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


@dataclass(frozen=True)
class TextAudit:
    """What `audit_texts` found. length: (smallest, median, largest) document in characters, of up to 2 000 of them, as
    are words (median, by white space) and scripts (shares of the letters). The rest counts everything; lists name at
    most the first 100."""

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
    other_samples: int | None = None
    leak_exact: int = 0
    leaks: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def audit_texts(source: TextSource, other: TextSource | None = None) -> TextAudit:
    """Look at a corpus and, for leaks, at another one (say, the training data of a test set).

    Exact duplicates have equal text, white space at the ends apart. conflicting: groups of them with several labels.
    """
    some = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int))
    texts = list(source.texts(some))
    lengths = np.array([len(t) for t in texts])
    groups: dict[int, list[int]] = {}
    for i, value in enumerate(source.hashes.tolist()):
        groups.setdefault(value, []).append(i)
    equal = [group for group in groups.values() if len(group) > 1]
    labels = source.labels
    counts = {} if labels is None else {c: int((labels == i).sum()) for i, c in enumerate(source.classes)}
    more: dict[str, Any] = {}
    if other is not None:
        there = {int(h): i for i, h in reversed(list(enumerate(other.hashes.tolist())))}
        same = [(i, there[h]) for i, h in enumerate(source.hashes.tolist()) if h in there]
        shown = tuple((source.names[i], other.names[j]) for i, j in same[:_LISTED])
        more = {"other_samples": len(other), "leak_exact": len(same), "leaks": shown}
    return TextAudit(
        samples=len(source),
        bytes=int(source.sizes.sum()),
        classes=counts,
        unlabelled=len(source) - sum(counts.values()),
        length=(int(lengths.min()), int(np.median(lengths)), int(lengths.max())),
        words=int(np.median([len(t.split()) for t in texts])),
        scripts=scripts("".join(t[:2000] for t in texts)),
        skipped_count=len(source.skipped),
        skipped=[(name, reason) for name, reason in source.skipped[:_LISTED]],
        exact_extra=sum(len(group) - 1 for group in equal),
        exact=[[source.names[i] for i in group[:_LISTED]] for group in equal[:_LISTED]],
        conflicting=0 if labels is None else sum(len(set(labels[g].tolist()) - {-1}) > 1 for g in equal),
        **more,
    )


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

    documents: a hundred different ones. words: half of them at least eight words, or 16 characters, long.
    """
    unique = found.samples - found.exact_extra
    long_enough = found.words >= 8 or found.length[1] >= 16
    return {
        "documents": (unique >= 100, f"{unique} different documents" + ("" if unique >= 100 else "; 100 are needed")),
        "words": (long_enough, f"{found.length[1]} characters in the median document"),
    }
