"""Masking against BERT's own rules, over 100 000 sequences, for each family of tokenizers, Chinese included."""

import numpy as np
import pytest
import torch
from tests.modality.corpus import CHINESE, texts

from selftaught import rng
from selftaught.batch import Batch
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.modality.text.mask import choose, corrupt, how_many

SEQUENCES = 100_000


def naive_words(maskable: list[bool], starts: list[bool], count: int, scores: list[float]) -> list[bool]:
    """create_pretraining_data.py: shuffled words, one that would overflow the count is skipped."""
    words: list[list[int]] = []
    for i, able in enumerate(maskable):
        if able and (starts[i] or not words):
            words.append([i])
        elif able:
            words[-1].append(i)
    words.sort(key=lambda word: scores[word[0]])
    chosen = [False] * len(maskable)
    left = count
    for word in words:
        if len(word) <= left:
            left -= len(word)
            for i in word:
                chosen[i] = True
    return chosen


def test_whole_words_are_those_of_the_naive_loop() -> None:
    g = torch.Generator().manual_seed(0)
    b, length = 300, 24
    sizes = torch.randint(3, length + 1, (b,), generator=g)
    at = torch.arange(length)
    maskable = (at > 0) & (at < (sizes - 1)[:, None])
    starts = torch.rand(b, length, generator=g) < 0.6
    starts[:, 1] = True
    scores = torch.rand(b, length, generator=g)
    count = torch.randint(1, 6, (b,), generator=g)
    found = choose(maskable, starts, count, scores)
    for row in range(b):
        expected = naive_words(maskable[row].tolist(), starts[row].tolist(), int(count[row]), scores[row].tolist())
        assert found[row].tolist() == expected


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "chinese"])
@pytest.mark.parametrize("words", [False, True])
def test_statistics_over_many_sequences(kind: str, words: bool) -> None:
    """Counts exact per sequence, 80/10/10 within four standard errors, no special token, whole words whole."""
    corpus = list(CHINESE) if kind == "chinese" else texts()
    tokenizer = Tokenizer.train(corpus, "wordpiece" if kind == "chinese" else kind, 1000)
    modality = TextModality(tokenizer, 32)
    raw = modality.inputs(corpus)
    repeats = -(-SEQUENCES // len(corpus))
    hidden = masked = kept = drawn = 0
    for block in range(0, repeats, 64):
        n = min(64, repeats - block)
        inputs = {name: x.repeat_interleave(n, 0) for name, x in raw.items()}
        b = len(inputs["ids"])
        batch = Batch(inputs, torch.arange(b) + block * b, seed=1, step=block)
        text = modality.plain(batch)
        count = how_many(text.valid, 0.15)
        able = modality.maskable(text)
        assert not able[text.ids == tokenizer.first].any()
        assert not (able & ~text.valid).any()
        starts = text.starts if words else torch.ones_like(text.starts)
        chosen = choose(able, starts, count, batch.uniform(1, text.ids.shape[1]))
        assert not (chosen & ~able).any()
        if words:
            assert (chosen.sum(1) <= count).all()
            # Two neighbours of one word are hidden together or not at all.
            joined = able[:, 1:] & able[:, :-1] & ~text.starts[:, 1:]
            assert (chosen[:, 1:] == chosen[:, :-1])[joined].all()
        else:
            assert (chosen.sum(1) == torch.minimum(count, able.sum(1))).all()
        ids = corrupt(
            *(text.ids, chosen, batch.uniform(2, text.ids.shape[1]), batch.uniform(3, text.ids.shape[1])),
            mask=tokenizer.mask,
            vocabulary=tokenizer.vocabulary,
            keep=0.1,
            random=0.1,
        )
        assert torch.equal(ids[~chosen], text.ids[~chosen])
        before, after = text.ids[chosen], ids[chosen]
        hidden += len(after)
        masked += int((after == tokenizer.mask).sum())
        kept += int((after == before).sum())
        drawn += int(((after != before) & (after != tokenizer.mask)).sum())
    assert hidden > SEQUENCES
    v = tokenizer.vocabulary  # a random token may happen to be the mask or the token itself
    for found, share in ((masked, 0.8 + 0.1 / v), (kept, 0.1 + 0.1 / v), (drawn, 0.1 - 0.2 / v)):
        assert abs(found / hidden - share) < 4 * np.sqrt(share * (1 - share) / hidden)


def test_counts_follow_bert_for_every_length() -> None:
    """max(1, round(.15 * length)), the length with its special tokens; Python rounds half to even, as torch does."""
    lengths = torch.arange(3, 513)
    count = how_many(torch.arange(512) < lengths[:, None], 0.15)
    assert count.tolist() == [max(1, round(n * 0.15)) for n in lengths.tolist()]


def test_every_token_is_as_likely() -> None:
    b, length = 20_000, 12
    able = torch.ones(b, length, dtype=torch.bool)
    scores = rng.uniform(5, torch.arange(b), length)
    chosen = choose(able, able, torch.full((b,), 3), scores)
    share = chosen.float().mean(0)
    assert (share - 0.25).abs().max() < 4 * np.sqrt(0.25 * 0.75 / b)
