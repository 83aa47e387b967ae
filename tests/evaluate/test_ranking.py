"""Ranking against the mean over all orders of ties, a figure by hand, and chance; baselines against naive formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from selftaught.errors import RunStopped
from selftaught.evaluation import recommenders
from selftaught.evaluation.ranking import Ranking, buckets, difference

CUTS = (1, 2, 3)


def naive(scores: np.ndarray, own: set[int], k: int) -> dict[str, float]:
    """Figures as the mean over all orders of items that agree with the scores."""
    found = []
    ideal = sum(1 / math.log2(i + 2) for i in range(min(k, len(own))))
    for order in itertools.permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        hits = [i for i, item in enumerate(order) if item in own]
        top = [i for i in hits if i < k]
        found.append(
            (bool(top), sum(1 / math.log2(i + 2) for i in top) / ideal, len(top) / len(own), 1 / (hits[0] + 1))
        )
    return dict(zip((f"hr@{k}", f"ndcg@{k}", f"recall@{k}", "mrr"), np.mean(found, 0).tolist(), strict=True))


def test_figures_are_means_over_all_orders_of_ties() -> None:
    draw = np.random.default_rng(0)
    for _ in range(40):
        scores, n = draw.integers(0, 3, 6).astype(np.float32), int(draw.integers(1, 4))
        own = draw.choice(6, n, replace=False)
        ranking = Ranking(CUTS, np.ones(6, np.int64))
        ranking.add(torch.from_numpy(scores)[None], [own])
        for k in CUTS:
            for name, value in naive(scores, set(own.tolist()), k).items():
                assert ranking.values(name)[0] == pytest.approx(value, abs=1e-12), (name, scores, own)


def test_a_worked_example_with_ties_and_seen_items() -> None:
    """Items 0 to 4 with scores 5 3 3 3 1; item 0 is seen. Item 2 is asked for: level with 1 and 3, so first, second or third."""
    ranking = Ranking((1, 2), np.array([6, 3, 1, 0, 0]))
    scores, seen = torch.tensor([[5.0, 3, 3, 3, 1]]), torch.tensor([[True, False, False, False, False]])
    ranking.add(scores, [np.array([2])], seen)
    assert ranking.values("hr@1")[0] == pytest.approx(1 / 3)
    assert ranking.values("hr@2")[0] == pytest.approx(2 / 3)
    assert ranking.values("ndcg@2")[0] == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert ranking.values("mrr")[0] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    kept = Ranking((1, 2), np.array([6, 3, 1, 0, 0]))
    kept.add(scores, [np.array([2])])
    assert kept.values("hr@1")[0] == 0
    assert difference(ranking, kept, "hr@1").value == pytest.approx(1 / 3)
    assert ranking.coverage() == {"coverage@1": 1 / 5, "coverage@2": 2 / 5}
    assert ranking.by_popularity("hr@1") == {"tail": {"value": pytest.approx(1 / 3), "n": 1}}
    assert ranking.novelty()["novelty@1"] > 1, "what is not popular is new"


def test_constant_scores_give_chance() -> None:
    ranking = Ranking((10,), np.ones(200, np.int64))
    ranking.add(torch.zeros(50, 200), [np.array([i]) for i in range(50)])
    assert ranking.values("hr@10") == pytest.approx(np.full(50, 10 / 200))


def test_a_seen_item_that_is_asked_for_is_ranked_and_nan_is_refused() -> None:
    ranking = Ranking((1,), np.ones(3, np.int64))
    ranking.add(torch.tensor([[3.0, 2, 1]]), [np.array([0])], torch.tensor([[True, True, False]]))
    assert ranking.values("hr@1")[0] == 1
    with pytest.raises(RunStopped, match="NaN"):
        ranking.add(torch.tensor([[1.0, math.nan, 0]]), [np.array([0])])


def test_buckets_by_share_of_the_events() -> None:
    assert buckets(np.array([50, 30, 15, 5, 0])).tolist() == [0, 1, 2, 2, 3]


@pytest.fixture(scope="module")
def histories() -> csr_array:
    draw = np.random.default_rng(1)
    return csr_array((draw.random((30, 12)) < 0.3).astype(np.float32))


def test_popularity_and_random(histories: csr_array) -> None:
    x = histories.toarray()
    found = recommenders.Popularity().fit(histories).scores(histories[:4])
    assert (found == x.sum(0)).all()
    model = recommenders.Random(3).fit(histories)
    assert (model.scores(histories) == model.scores(histories)).all()
    assert len(np.unique(model.scores(histories)[0])) == 12


def test_itemknn_is_its_loops(histories: csr_array) -> None:
    x, k, shrink = histories.toarray().astype(np.float64), 3, 2.0
    near = np.zeros((12, 12))
    for i in range(12):
        cosine = [
            x[:, i] @ x[:, j] / (math.sqrt(x[:, i].sum() * x[:, j].sum()) + shrink) if i != j else 0.0
            for j in range(12)
        ]
        for j in sorted(range(12), key=lambda j: (-cosine[j], j))[:k]:
            near[i, j] = cosine[j]
    found = recommenders.ItemKNN(k, shrink).fit(histories).scores(histories)
    np.testing.assert_allclose(found, x @ near.T, rtol=1e-5)


def test_ease_is_the_constrained_least_squares(histories: csr_array) -> None:
    """Each column by itself: ridge on all other items, whose weights no item gives to itself."""
    x, weight = histories.toarray().astype(np.float64), 4.0
    table = np.zeros((12, 12))
    for j in range(12):
        others = np.delete(np.arange(12), j)
        a = x[:, others]
        table[others, j] = np.linalg.solve(a.T @ a + weight * np.eye(11), a.T @ x[:, j])
    np.testing.assert_allclose(recommenders.EASE(weight).fit(histories).scores(histories), x @ table, atol=1e-4)


def test_pure_svd_is_numpys(histories: csr_array) -> None:
    x = histories.toarray().astype(np.float64)
    right = np.linalg.svd(x)[2][:5]
    found = recommenders.PureSVD(5).fit(histories).scores(histories)
    np.testing.assert_allclose(found, x @ right.T @ right, atol=1e-2)


def test_a_grid_is_every_setting() -> None:
    assert len(list(recommenders.candidates("itemknn"))) == 9
    assert [given["weight"] for given, _ in recommenders.candidates("ease")] == [30.0, 100.0, 300.0, 1000.0, 3000.0]
