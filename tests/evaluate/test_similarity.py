"""Similarity and retrieval: against scipy, against the mean over all orders of ties, and the figure of chance."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from selftaught.evaluation import similarity


def test_spearman_is_scipys_with_ties_and_zero_for_constants() -> None:
    draw = np.random.default_rng(0)
    found, gold = draw.normal(size=50).round(1), draw.integers(0, 5, 50).astype(float)
    assert similarity.spearman(found, gold) == pytest.approx(spearmanr(found, gold).statistic)
    assert similarity.spearman(np.ones(50), gold) == 0.0


def test_intervals_cover_and_pair() -> None:
    draw = np.random.default_rng(0)
    gold = draw.normal(size=200)
    near, far = gold + draw.normal(size=200), gold + 3 * draw.normal(size=200)
    a, b = (similarity.spearman_resampled(x, gold) for x in (near, far))
    found = similarity.interval(similarity.spearman(near, gold), a)
    assert found.low < found.value < found.high
    assert np.quantile(a - b, 0.025) > 0


def naive(scores: np.ndarray, own: set[int], cut: int) -> tuple[float, float]:
    """(nDCG, recall) as the mean over all orders of documents that agree with the scores."""
    ndcg, recall, n = 0.0, 0.0, 0
    ideal = sum(1 / math.log2(i + 2) for i in range(min(cut, len(own))))
    for order in itertools.permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        hits = [i for i, d in enumerate(order[:cut]) if d in own]
        ndcg, recall, n = ndcg + sum(1 / math.log2(i + 2) for i in hits) / ideal, recall + len(hits) / len(own), n + 1
    return ndcg / n, recall / n


def test_retrieval_is_the_mean_over_the_orders_of_ties() -> None:
    draw = torch.Generator().manual_seed(0)
    documents = torch.nn.functional.one_hot(torch.randint(0, 3, (6,), generator=draw), 3).float()  # many ties
    queries = torch.rand(5, 3, generator=draw)
    relevant = [np.array([0]), np.array([1, 2]), np.array([3, 4, 5]), np.array([5]), np.arange(6)]
    found = similarity.retrieval(queries, documents, relevant, cut=3)
    unit = torch.nn.functional.normalize(queries.double(), dim=1)
    for i, own in enumerate(relevant):
        ndcg, recall = naive((unit[i] @ documents.double().T).numpy().round(12), set(own.tolist()), 3)
        assert found["ndcg@3"][i] == pytest.approx(ndcg)
        assert found["recall@3"][i] == pytest.approx(recall)


def test_constant_features_give_chance_and_equal_ones_a_perfect_figure() -> None:
    n = 40
    relevant = [np.array([i]) for i in range(n)]
    flat = similarity.retrieval(torch.ones(n, 4), torch.ones(n, 4), relevant)
    assert flat["recall@1"].mean() == pytest.approx(1 / n)
    assert flat["recall@10"].mean() == pytest.approx(10 / n)
    same = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    perfect = similarity.retrieval(same, same, relevant)
    assert all(v.mean() == 1.0 for v in perfect.values())
    assert similarity.cosine(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [0.0, 0.0]
