"""BLEU and chrF against sacrebleu's own, on whole sets and on resamples; paired differences; Chinese."""

import sys

import numpy as np
import pytest

from selftaught.errors import UserError
from selftaught.evaluation import translation
from selftaught.evaluation.intervals import resamples

sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra 'translate'")

WORDS = ["der", "Hund", "läuft", "schnell", "über", "die", "grüne", "Wiese", ",", "weil", "er", "spielt", "."]


def sentences(seed: int, n: int = 40) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(3, 15))) for _ in range(n)]


def spoilt(references: list[str], share: float, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(w if draw.random() > share else "Katze" for w in r.split()) for r in references]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_figures_are_those_of_sacrebleu(share: float) -> None:
    references = sentences(0)
    found = spoilt(references, share, 1)
    counted = translation.counts(found, references)
    bleu = sacrebleu.metrics.BLEU().corpus_score(found, [references]).score
    chrf = sacrebleu.metrics.CHRF().corpus_score(found, [references]).score
    assert translation.interval(counted, "bleu").value == pytest.approx(bleu, abs=1e-9)
    assert translation.interval(counted, "chrf").value == pytest.approx(chrf, abs=1e-9)


def test_chrf_is_that_of_sacrebleu_where_references_are_shorter_than_its_longest_order() -> None:
    references, found = ["你好", "谢谢你", "我们明天见", "猫"], ["你们好吗", "谢谢你们了", "我们今天再见", "小猫咪"]
    expected = sacrebleu.metrics.CHRF().corpus_score(found, [references]).score
    counted = translation.counts(found, references)
    assert translation.interval(counted, "chrf").value == pytest.approx(expected, abs=1e-9)


def test_a_resample_is_the_figure_of_the_resampled_sentences() -> None:
    references = sentences(0)
    found = spoilt(references, 0.3, 1)
    counted = translation.counts(found, references)
    count = next(iter(resamples(len(found), seed=3)))[:5]
    for row in count:
        chosen = np.repeat(np.arange(len(found)), row.long().numpy())
        mine, theirs = [found[i] for i in chosen], [references[i] for i in chosen]
        total = row.numpy()[None]
        expected = sacrebleu.metrics.BLEU().corpus_score(mine, [theirs]).score
        assert translation.bleu(total @ counted.bleu)[0] == pytest.approx(expected, abs=1e-9)
        expected = sacrebleu.metrics.CHRF().corpus_score(mine, [theirs]).score
        assert translation.chrf(total @ counted.chrf)[0] == pytest.approx(expected, abs=1e-9)


def test_paired_differences_are_narrower_than_unpaired_ones() -> None:
    references = sentences(0, 200)
    worse = spoilt(references, 0.3, 1)
    better = [r if i % 5 else w for i, (r, w) in enumerate(zip(spoilt(references, 0.25, 1), worse, strict=True))]
    a, b = translation.counts(better, references), translation.counts(worse, references)
    for name in translation.METRICS:
        one, two = (translation.interval(x, name) for x in (a, b))
        gap = translation.difference(a, b, name)
        assert one.low < one.value < one.high
        assert gap.value == pytest.approx(one.value - two.value)
        assert gap.low <= gap.value <= gap.high
        assert gap.high - gap.low < (one.high - one.low) + (two.high - two.low)
        assert translation.difference(a, a, name) == (0.0, 0.0, 0.0)
    assert translation.interval(a, "bleu", seed=1) == translation.interval(a, "bleu", seed=1)
    assert translation.interval(a, "bleu", seed=1) != translation.interval(a, "bleu", seed=2)


def test_chinese_is_cut_by_the_character_and_the_signature_says_so() -> None:
    assert translation.tokenization(["自监督学习很好", "今天"]) == "zh"
    assert translation.tokenization(["Hund", ""]) == "13a"
    found = translation.counts(["今天 很好"], ["今天不好"])
    assert found.bleu[0, 0] == 3
    assert "tok:zh" in translation.signature(["自监督"])
    assert "tok:13a" in translation.signature(["Hund"])


def test_empty_translations_have_a_figure() -> None:
    counted = translation.counts(["", "der Hund"], ["der Hund", "der Hund"])
    assert 0 <= translation.interval(counted, "bleu").value < 100
    assert translation.interval(translation.counts(["", ""], ["a", "b"]), "chrf").value == 0.0


def test_without_the_extra_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match="needs the extra 'translate': pip install"):
        translation.metric(["a"])
