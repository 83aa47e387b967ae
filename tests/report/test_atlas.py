import dataclasses
import json

import fake_run
import numpy as np
import pytest

from selftaught.errors import UserError
from selftaught.reporting import atlas as module
from selftaught.reporting import make_atlas


def small(n=12, **change):
    thumbs, labels = fake_run.synthetic(n, 8, 3)
    given = {
        "features": fake_run.embedding(labels),
        "thumbs": thumbs,
        "names": [str(i) for i in range(n)],
        "labels": labels,
        "classes": ["a", "b", "c"],
        "seed": 0,
    }
    return make_atlas(**(given | change))


def test_neighbours_are_the_most_similar_by_cosine(atlas):
    _, labels = fake_run.synthetic(80, 24, 4)
    features = fake_run.embedding(labels)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for query, neighbours, similarity in zip(atlas.queries, atlas.neighbours, atlas.similarity):
        cosine = unit @ unit[query]
        cosine[query] = -2
        naive = sorted(range(80), key=lambda i: -cosine[i])[:6]
        assert neighbours.tolist() == naive
        np.testing.assert_allclose(similarity, cosine[naive], rtol=1e-5)


def test_scale_of_features_does_not_matter():
    thumbs, labels = fake_run.synthetic(40, 8, 3)
    features = fake_run.embedding(labels)
    scaled = features * np.random.default_rng(1).uniform(0.1, 10, (40, 1))
    one, two = (small(40, features=f, labels=labels, thumbs=thumbs) for f in (features, scaled))
    assert (one.neighbours == two.neighbours).all()


def test_map_keeps_clusters_and_fills_its_frame(atlas):
    assert np.isfinite(atlas.xy).all()
    assert np.abs(atlas.xy).max() == pytest.approx(1, abs=1e-6)
    assert np.ptp(atlas.xy[:, 0]) >= np.ptp(atlas.xy[:, 1]) * 0.5
    distance = np.linalg.norm(atlas.xy[:, None] - atlas.xy, axis=2)
    np.fill_diagonal(distance, np.inf)
    same = atlas.labels[distance.argmin(axis=1)] == atlas.labels
    assert same.mean() > 0.6
    assert atlas.trust is not None
    assert atlas.trust > 0.7


def test_agreement_is_the_share_of_neighbours_with_the_same_class():
    centres = np.eye(3)[np.arange(30) % 3] * 5
    features = centres + np.random.default_rng(0).normal(0, 0.01, (30, 3))
    labels = np.arange(30) % 3
    apart = small(30, features=features, labels=labels)
    assert apart.agreement == 1.0
    assert apart.chance == pytest.approx(9 / 29)
    mixed = small(30, features=features, labels=(np.arange(30) // 3) % 3)
    assert mixed.agreement < 0.6


def test_same_seed_same_atlas_and_queries_cover_the_classes(atlas):
    one, two, other = small(60), small(60), small(60, seed=9)
    assert (one.xy == two.xy).all()
    assert (one.queries == two.queries).all()
    assert set(one.queries) != set(other.queries)
    assert len(set(atlas.queries.tolist())) == 12
    assert np.bincount(atlas.labels[atlas.queries]).tolist() == [3, 3, 3, 3]


def test_queries_without_labels_spread_over_the_map():
    made = small(60, labels=None)
    assert (made.labels == -1).all()
    assert made.agreement is None
    assert len(set(made.queries.tolist())) == 12
    chosen = made.xy[made.queries]
    distance = np.linalg.norm(chosen[:, None] - chosen, axis=2) + 10 * np.eye(12)
    assert distance.min() > 0.1, "farthest-point sampling leaves no two queries together"


def test_more_classes_than_queries_and_labels_partly_unknown():
    labels = np.arange(40)
    labels[::4] = -1
    made = small(40, labels=labels, classes=[str(i) for i in range(40)])
    assert len(made.queries) == 12
    assert (made.labels[made.queries] >= 0).all()
    assert len(set(made.labels[made.queries])) == 12


def test_above_the_limit_a_seeded_sample_is_drawn(monkeypatch):
    monkeypatch.setattr(module, "POINTS", 30)
    made = small(50)
    assert len(made.xy) == len(made.names) == len(made.thumbs) == 30
    assert made.total == 50
    assert made.names != [str(i) for i in range(30)]
    thumbs, _ = fake_run.synthetic(50, 8, 3)
    assert (made.thumbs == thumbs[[int(name) for name in made.names]]).all(), "names stay with their pictures"


@pytest.mark.parametrize("n", [2, 3, 9, 10, 26])
def test_few_samples(n):
    made = small(n)
    assert made.neighbours.shape == (min(n, 12), min(n - 1, 6))
    assert np.isfinite(made.xy).all()


def test_a_collapsed_encoder_is_a_single_point():
    made = small(30, features=np.ones((30, 5)))
    assert (made.xy == 0).all()
    made = small(30, features=np.zeros((30, 5)))
    assert (made.xy == 0).all()


def test_one_feature_and_float32_and_grey_and_large_thumbnails():
    thumbs, _ = fake_run.synthetic(20, 100, 3)
    features = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    made = small(20, features=features, thumbs=thumbs[:, :1], labels=None)
    assert made.thumbs.shape == (20, 1, 64, 64)
    wide = small(20, thumbs=thumbs[:, :, :50], labels=None)
    assert wide.thumbs.shape == (20, 3, 32, 64)


def test_bad_requests_are_refused_in_one_line():
    features = np.zeros((12, 4))
    features[3] = np.nan
    with pytest.raises(UserError, match="1 of 12 feature vectors are not finite"):
        small(features=features)
    with pytest.raises(UserError, match="give at least 2"):
        small(1)
    with pytest.raises(UserError, match="one of each"):
        small(names=["a"])
    with pytest.raises(UserError, match="no name among 1 classes"):
        small(classes=["a"])


def test_saved_and_loaded_it_is_the_same(atlas, tmp_path):
    atlas.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["atlas.json", "atlas.safetensors"]
    again = module.load(tmp_path)
    for field in dataclasses.fields(atlas):
        a, b = getattr(atlas, field.name), getattr(again, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


def test_broken_atlas_is_refused(atlas, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        module.load(tmp_path)
    atlas.save(tmp_path)
    words = json.loads((tmp_path / "atlas.json").read_text())
    (tmp_path / "atlas.json").write_text(json.dumps(words | {"names": words["names"][1:]}))
    with pytest.raises(UserError, match="do not belong together"):
        module.load(tmp_path)
    (tmp_path / "atlas.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match="cannot be read"):
        module.load(tmp_path)


def test_it_says_how_many_its_samples_were_drawn_from():
    assert small().total == 12
    assert small(of=500).total == 500
