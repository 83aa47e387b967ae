import json

import pytest
import torch

from selftaught.errors import UserError
from selftaught.evaluation import efficiency
from selftaught.evaluation.efficiency import curve, draw_labels
from selftaught.evaluation.knn import knn


@pytest.fixture(scope="module")
def data():
    """Three feature sets of 4 classes, from clean to noise; 200 training and 150 test samples."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(350) % 4
    centres = torch.randn(4, 16, generator=generator)
    sets = {}
    for name, noise in [("pretrained", 1.0), ("raw", 2.0), ("random_init", 3.0)]:
        x = centres[labels] + noise * torch.randn(350, 16, generator=generator)
        sets[name] = (x[:200], x[200:])
    return sets, labels[:200], labels[200:]


def test_draws_are_stratified_nested_and_repeatable():
    labels = torch.cat([torch.arange(300) % 3, torch.full((4,), 3), torch.full((10,), -1)])
    few, more = (draw_labels(labels, share, seed=5, draw=2) for share in (0.05, 0.2))
    assert torch.bincount(labels[few]).tolist() == [5, 5, 5, 1]
    assert torch.bincount(labels[more]).tolist() == [20, 20, 20, 1]
    assert set(few.tolist()) <= set(more.tolist())
    assert torch.equal(few, draw_labels(labels, 0.05, seed=5, draw=2))
    for other in (draw_labels(labels, 0.05, seed=5, draw=3), draw_labels(labels, 0.05, seed=6, draw=2)):
        assert not torch.equal(few, other)
    assert torch.bincount(labels[draw_labels(labels, 7, seed=0, draw=0)]).tolist() == [7, 7, 7, 4]
    assert len(draw_labels(labels, 1.0, seed=0, draw=0)) == 304


def test_rows_have_the_agreed_form_and_survive_json(data):
    sets, train, test = data
    rows = curve(sets, train, test, shares=(0.1, 1.0), counts=(1,), draws=3, seed=4)
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == 3 * 2 * 3  # amounts, measures, sets
    assert [r["labels_n"] for r in rows[::6]] == [4, 20, 200]
    for row in rows:
        assert list(row)[:9] == ["measure", "features", "labels", "metric", "value", "low", "high", "seeds", "n"]
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["n"] == 150
        assert row["seeds"] == ([0] if row["labels_n"] == 200 else [0, 1, 2])
        assert ("against" in row) == (row["features"] == "pretrained")
    best = {(r["measure"], repr(r["labels"])): r for r in rows if r["features"] == "pretrained"}
    assert len(best) == 6  # one label per class and the share 1.0 are not mixed up
    gap = best["linear_probe", "0.1"]["against"]
    assert gap["random_init"][1] > 0
    assert gap["raw"][0] < gap["random_init"][0]
    assert best["linear_probe", "1.0"]["value"] > best["linear_probe", "1"]["value"]


def test_shares_that_come_to_the_same_draws_are_measured_once():
    labels = torch.arange(200) % 20  # ten a class
    sets = {"raw": (torch.randn(200, 4, generator=torch.Generator().manual_seed(0)),) * 2}
    for counts in ((), (1, 10)):
        rows = curve(sets, labels, labels, shares=(0.01, 0.05, 0.1, 1.0), counts=counts, draws=2, measures=("knn",))
        assert [(r["labels"], r["labels_n"], len(r["seeds"])) for r in rows] == [(0.1, 20, 2), (1.0, 200, 1)]
    uneven = torch.cat([torch.arange(20) % 2, torch.zeros(10, dtype=torch.int64)])  # 20 and 10
    sets = {"raw": (sets["raw"][0][:30],) * 2}
    rows = curve(sets, uneven, uneven, shares=(0.2,), counts=(3,), draws=1, measures=("knn",))
    assert [(r["labels"], r["labels_n"]) for r in rows] == [(3, 6), (0.2, 6)], "as many, but not the same ones"


def test_the_full_share_is_the_published_knn_and_ignores_unlabelled_samples(data):
    sets, train, test = data
    holes = train.clone(), test.clone()
    holes[0][:40] = -1
    holes[1][:50] = -1
    (row,) = curve({"raw": sets["raw"]}, *holes, shares=(1.0,), measures=("knn",))
    expected = knn(sets["raw"][0][40:], train[40:], sets["raw"][1][50:], k=200) == test[50:]
    assert row["value"] == pytest.approx(float(expected.double().mean()))
    assert (row["n"], row["labels_n"]) == (100, 160)


@pytest.mark.parametrize("cut", [1, 2, 4, 7])
def test_an_interrupted_curve_goes_on_to_the_same_rows(data, cut, monkeypatch):
    sets, train, test = data
    arguments = {"shares": (0.1, 1.0), "draws": 2}
    whole = curve(sets, train, test, **arguments)
    saved, seen = [], []

    def save(row):
        saved.append(row)
        if len(saved) == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curve(sets, train, test, save=save, **arguments)
    done = json.loads(json.dumps(saved))
    resumed = curve(
        sets, train, test, done=done, save=saved.append, progress=lambda i, n: seen.append((i, n)), **arguments
    )
    assert resumed == whole == saved
    assert seen == [(i, 12) for i in range(1, 13)]
    monkeypatch.setattr(efficiency, "_correct", None)  # everything is there: nothing may be measured
    assert curve(sets, train, test, done=saved, **arguments) == whole


def test_all_sets_meet_the_same_draws(data):
    sets, train, test = data
    twins = dict.fromkeys(("raw", "random_init", "pretrained"), sets["raw"])
    for row in curve(twins, train, test, shares=(0.05,), draws=3):
        assert row.get("against", {"raw": [0, 0, 0], "random_init": [0, 0, 0]}) == {
            "random_init": [0, 0, 0],
            "raw": [0, 0, 0],
        }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shares": (0.0,)}, "share 0.0"),
        ({"shares": (2.0,)}, "share 2.0"),
        ({"counts": (0,)}, "0 labels per class"),
        ({"draws": 0}, "draws is 0"),
        ({"measures": ("svm",)}, "measure 'svm'"),
        ({"features": {"x": (torch.zeros(3, 2), torch.zeros(150, 2))}}, "'x' have 3 training"),
        ({"features": {"x": (torch.full((200, 2), torch.nan), torch.zeros(150, 2))}}, "'x' hold NaN"),
        ({"train_labels": torch.zeros(200, dtype=torch.int64)}, "hold 1 class"),
        ({"test_labels": torch.full((150,), 9)}, "class 9 is in the test part"),
        ({"test_labels": torch.full((150,), -1)}, "no test sample has a label"),
    ],
)
def test_refuses_before_it_measures(data, change, words):
    sets, train, test = data
    arguments = {"features": sets, "train_labels": train, "test_labels": test, **change}
    with pytest.raises(UserError, match=words):
        curve(**arguments)
