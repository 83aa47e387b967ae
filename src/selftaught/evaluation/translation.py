"""BLEU and chrF of translations, with bootstrap intervals over sentences (Koehn 2004), also of differences, paired.

Both are ratios of sums over sentences, so a resample needs the sentences' counts alone: nothing is tokenized again.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selftaught.errors import UserError
from selftaught.evaluation.intervals import Interval, resamples

_CHARACTERS = 6  # chrF's n-grams (Popovic 2015), and the weight of recall
_BETA = 2
_WORDS = 4  # BLEU's


@dataclass(frozen=True)
class Translated:
    """Counts of each sentence, which add up: bleu [n, 10] (matches and n-grams of 1 to 4, lengths), chrf [n, 18]."""

    bleu: np.ndarray
    chrf: np.ndarray

    def __len__(self) -> int:
        return len(self.bleu)


def tokenization(references: Sequence[str]) -> str:
    """How BLEU cuts words: "zh" (by the character) where most letters are Chinese, else "13a", the standard."""
    letters = Counter(
        "CJK" in unicodedata.name(c, "") for text in references[:1000] for c in text[:1000] if c.isalpha()
    )
    return "zh" if letters[True] > letters[False] else "13a"


def metric(references: Sequence[str]) -> Any:
    """sacrebleu's BLEU for these references. UserError without the extra."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise UserError("translation needs the extra 'translate': pip install 'selftaught[translate]'") from error
    # effective_order silences a warning about single sentences; it does not change their counts.
    return BLEU(tokenize=tokenization(references), effective_order=True)


def signature(references: Sequence[str]) -> str:
    """What a BLEU figure must be quoted with: tokenization, case, smoothing and the version of sacrebleu."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize=tokenization(references))
    bleu.corpus_score(["a"], [["a"]])  # it then knows the number of references
    return f"BLEU|{bleu.get_signature()}"


def counts(found: Sequence[str], references: Sequence[str]) -> Translated:
    """The sentences' counts, of one reference each."""
    bleu, rows = metric(references), []
    for hypothesis, reference in zip(found, references, strict=True):
        one = bleu.sentence_score(hypothesis, [reference])
        rows.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    grams = [_grams(h, r) for h, r in zip(found, references, strict=True)]
    return Translated(np.array(rows, np.float64), np.array(grams, np.float64))


def _grams(hypothesis: str, reference: str) -> list[int]:
    """For n = 1 to 6: n-grams of characters (no white space) in the hypothesis, in the reference, in both.

    As in sacrebleu, those of an order that the reference is too short for are not counted.
    """
    h, r = ("".join(text.split()) for text in (hypothesis, reference))
    out = []
    for n in range(1, _CHARACTERS + 1):
        a, b = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (h, r))
        out += [a.total() if b else 0, b.total(), (a & b).total()]
    return out


def bleu(total: np.ndarray) -> np.ndarray:
    """BLEU [k] in per cent of summed counts [k, 10] (Papineni et al. 2002), smoothed as sacrebleu does ("exp")."""
    from sacrebleu.metrics import BLEU

    scores = []
    for row in total:
        correct, grams = row[:_WORDS].tolist(), row[_WORDS : 2 * _WORDS].tolist()
        scores.append(BLEU.compute_bleu(correct, grams, int(row[-2]), int(row[-1]), smooth_method="exp").score)
    return np.array(scores)


def chrf(total: np.ndarray) -> np.ndarray:
    """chrF2 [k] in per cent of summed counts [k, 18]: F-score of the mean precision and recall of orders that occur."""
    hypothesis, reference, both = total.reshape(len(total), _CHARACTERS, 3).transpose(2, 0, 1)
    there = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(there.sum(1), 1)
    precision, recall = (
        np.where(there, both / np.maximum(side, 1), 0).sum(1) / orders for side in (hypothesis, reference)
    )
    weight = _BETA**2
    bottom = weight * precision + recall
    return 100 * np.where(bottom > 0, (1 + weight) * precision * recall / np.where(bottom > 0, bottom, 1), 0)


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bleu": bleu, "chrf": chrf}


def _figures(of: Sequence[Translated], name: str, seed: int) -> np.ndarray:
    """The metric of each set of translations, on all sentences [:, 0] and on each resample [:, 1:]."""
    score = METRICS[name]
    tables = [getattr(one, name) for one in of]
    whole = [score(table.sum(0)[None]) for table in tables]
    parts: list[list[np.ndarray]] = [[] for _ in tables]
    for count in resamples(len(tables[0]), seed):
        for part, table in zip(parts, tables, strict=True):
            part.append(score(count.numpy() @ table))
    return np.stack([np.concatenate([w, *p]) for w, p in zip(whole, parts, strict=True)])


def interval(found: Translated, name: str, *, seed: int = 0) -> Interval:
    """A metric of METRICS and its 95 % percentile interval over 1000 resamples of the sentences."""
    values = _figures([found], name, seed)[0]
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high))


def difference(a: Translated, b: Translated, name: str, *, seed: int = 0) -> Interval:
    """The metric of `a` minus that of `b`, on the same resamples of the same sentences."""
    first, second = _figures([a, b], name, seed)
    low, high = np.quantile((first - second)[1:], [0.025, 0.975])
    return Interval(float(first[0] - second[0]), float(low), float(high))
