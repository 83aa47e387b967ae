"""Near duplicates of texts: the same ones as comparing all pairs finds, in English and Chinese."""

import random
import unicodedata

import numpy as np
import pytest
from tests.modality.corpus import CHINESE, english

from selftaught.data import near_texts
from selftaught.data.copies import groups, parts
from selftaught.data.near_texts import MIN_JACCARD, jaccard, near_between, near_within, normalised, sketches
from selftaught.data.text_audit import audit_texts
from selftaught.data.texts import TextSource, from_list


def naive_shingles(text: str) -> set[tuple[str, ...]]:
    """Written anew from its description: five letters, of which a Chinese character is two."""
    plain = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    units = [c for c in plain for _ in range(2 if ord(c) >= 0x2E80 else 1)]
    return {tuple(units[k : k + 5]) for k in range(max(1, len(units) - 4))}


def naive_jaccard(texts: list[str]) -> np.ndarray:
    found = [naive_shingles(text) for text in texts]
    return np.array([[len(a & b) / len(a | b) for b in found] for a in found])


def edited(text: str, draw: random.Random, edits: int) -> str:
    """A text with some characters replaced, some left out, some added."""
    characters = list(text)
    for _ in range(edits):
        at = draw.randrange(len(characters))
        characters[at] = draw.choice(["", "x", characters[at] + "说"])
    return "".join(characters)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """Docstrings and Chinese paragraphs, copies of some of them with few to many edits, and two exact copies."""
    draw = random.Random(0)
    plain = [text[:1500] for text, _ in english()[:150]]
    plain += ["".join(draw.sample(CHINESE, 4)) + str(k) for k in range(30)]
    planted = [edited(text, draw, 1 + k % 12) for k, text in enumerate(plain[:60] + plain[-30:])]
    loud = [plain[k].upper().replace("\n", "  \n") for k in (3, 5)]
    return [*plain, *planted, *loud, plain[0], plain[7]]


def all_of(source: TextSource) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(len(source))
    return index, sketches(source.texts(index), lambda done: None)


def test_the_jaccard_index_is_that_of_sets(corpus: list[str]) -> None:
    texts = [*corpus[:40], *corpus[-40:], "a", "好", "abcd", "abcde"]
    source = from_list(texts)
    i, j = (part.ravel() for part in np.indices((len(texts), len(texts))))
    np.testing.assert_allclose(jaccard(source, i, source, j).reshape(len(texts), -1), naive_jaccard(texts), rtol=1e-12)


def test_parts_of_any_size_give_the_same(corpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = from_list(corpus)
    i, j = np.random.default_rng(0).integers(0, len(corpus), (2, 300))
    expected, keys = jaccard(source, i, source, j), all_of(source)[1]
    for name, value in (("_TEXTS", 2), ("_PAIRS", 7), ("_COMPARED", 100), ("_AT_ONCE", 1000)):
        monkeypatch.setattr(near_texts, name, value)
        np.testing.assert_array_equal(jaccard(source, i, source, j), expected)
        np.testing.assert_array_equal(all_of(source)[1], keys)


def test_the_same_groups_as_comparing_all_pairs(corpus: list[str]) -> None:
    source, truth = from_list(corpus), naive_jaccard(corpus)
    i, j = near_within(source, *all_of(source))
    assert (i < j).all()
    assert (truth[i, j] >= MIN_JACCARD).all()
    clear = np.argwhere(np.triu(truth >= MIN_JACCARD + 0.03, 1))
    assert len(clear) > 40
    assert len(np.argwhere(np.triu((truth > 0.3) & (truth < MIN_JACCARD), 1))) > 30  # some that must not be found
    part = parts(len(corpus), i, j)
    assert (part[clear[:, 0]] == part[clear[:, 1]]).all()


def test_between_two_sets(corpus: list[str]) -> None:
    truth = naive_jaccard(corpus)
    here, there = np.arange(180), np.arange(180, len(corpus))  # the texts, and the copies of some
    source, other = from_list([corpus[k] for k in here]), from_list([corpus[k] for k in there])
    found = near_between(source, *all_of(source), other, *all_of(other))
    across = truth[np.ix_(here, there)]
    assert all(across[k, v] >= MIN_JACCARD for k, v in found.items())
    clear = np.flatnonzero(across.max(1) >= MIN_JACCARD + 0.03)
    assert len(clear) > 20
    assert set(clear.tolist()) <= set(found)


def test_case_width_and_white_space_do_not_matter() -> None:
    assert normalised("  Ａ wide\n\tＬＩＮＥ１ ") == normalised("a Wide line1") == "a wide line1"
    text = CHINESE[0] * 2 + "（好）"
    source = from_list([text, " ".join(CHINESE[1] * 3), text.replace("（", "(").replace("）", ")")])
    assert [part.tolist() for part in near_within(source, *all_of(source))] == [[0], [2]]


def test_a_crowd_is_one_group_and_takes_no_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand letters from one template: 499 500 pairs, of which some thousand are compared."""
    compared: list[int] = []
    true = near_texts.jaccard
    monkeypatch.setattr(near_texts, "jaccard", lambda s, i, o, j: (compared.append(len(i)), true(s, i, o, j))[1])
    letter = english()[3][0][:600]
    source = from_list(
        [f"Dear customer {k:04d}, {letter}" for k in range(1000)] + [text for text, _ in english()[10:40]]
    )
    i, j = near_within(source, *all_of(source))
    assert max(groups(len(source), i, j), key=len) == list(range(1000))
    assert sum(compared) < 20_000


def test_an_audit_counts_near_copies_and_leaks(corpus: list[str]) -> None:
    text, another = corpus[1], corpus[20]
    assert len(text) > 200
    source = from_list([text, text, text + " More.", another, corpus[30]])
    other = from_list([text + " Less.", another, corpus[31], corpus[32]])
    told: list[int] = []
    found = audit_texts(source, other, told.append)
    assert (found.exact_extra, found.near_count) == (1, 3)
    assert found.exact == [["text 0", "text 1"]]
    assert found.near == [["text 0", "text 1", "text 2"]]
    assert (found.other_samples, found.leak_exact, found.leak_near) == (4, 1, 3)
    assert [(leak.name, leak.other, leak.exact) for leak in found.leaks] == [
        ("text 3", "text 1", True),
        *((f"text {k}", "text 0", False) for k in range(3)),
    ]
    assert told[-1] == len(source) + len(other)
    assert told == sorted(told)
