import json

import numpy as np
import pytest
from pictures import encoded, folder, pixels, save
from PIL import Image
from tests.modality.corpus import english

from selftaught.data import open_data
from selftaught.data.audit import audit, offers, rotation_accuracy
from selftaught.data.copies import groups
from selftaught.data.event_audit import audit_events, event_offers
from selftaught.data.events import EventSource
from selftaught.data.similar import MIN_CORRELATION, dhash, near_pairs, thumbnails
from selftaught.data.text_audit import audit_texts, text_offers
from selftaught.data.texts import TextSource
from selftaught.pretext import available, find


def test_thumbnails_are_area_averages_of_the_true_picture(tmp_path):
    grey = pixels(1, 16, 18, 1)
    save(tmp_path / "a.png", 1, 16, 18, channels=1)
    save(tmp_path / "b.png", 2, 40, 50, channels=1)  # pads the canvas
    (small,) = thumbnails(open_data(tmp_path), (8, 9))
    np.testing.assert_allclose(small[0], grey.reshape(8, 2, 9, 2).mean(axis=(1, 3)), rtol=1e-4)


def test_dhash_is_one_bit_per_neighbour():
    grey = np.zeros((2, 8, 9), np.float32)
    grey[0, 0, 1] = 1  # brighter than its left neighbour: one bit
    grey[1] = np.arange(9)
    assert np.bitwise_count(dhash(grey)).tolist() == [1, 64]


def test_near_pairs_are_those_of_comparing_all():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 60, dtype=np.uint64)
    codes = [base]
    for flips in range(1, 7):
        masks = [sum(1 << int(b) for b in rng.choice(64, flips, replace=False)) for _ in base]
        codes.append(base ^ np.array(masks, np.uint64))
    codes = np.concatenate(codes)
    grey = np.tile(rng.uniform(0, 255, (60, 4, 4)), (7, 1, 1)) + rng.normal(0, 10, (420, 4, 4))
    i, j = near_pairs(codes, grey)
    distance = np.bitwise_count(codes[:, None] ^ codes[None])
    similar = np.corrcoef(grey.reshape(420, -1))
    expected = np.argwhere(np.triu((distance <= 3) & (similar >= MIN_CORRELATION), 1))
    assert 50 < len(expected) < len(np.argwhere(np.triu(distance <= 3, 1)))
    np.testing.assert_array_equal(np.stack([i, j], 1), expected)


def test_many_equal_codes_are_handled_in_parts(monkeypatch):
    monkeypatch.setattr("selftaught.data.copies._PAIRS", 100)
    grey = np.tile(np.random.default_rng(0).uniform(0, 255, (1, 4, 4)), (50, 1, 1))
    i, j = near_pairs(np.full(50, 7, np.uint64), grey)
    np.testing.assert_array_equal(np.stack([i, j]), np.triu_indices(50, 1))


def test_groups_connect_chains():
    assert groups(7, np.array([5, 1, 2]), np.array([6, 2, 4])) == [[1, 2, 4], [5, 6]]
    assert groups(3, np.array([], int), np.array([], int)) == []


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "in"
    for i in range(30):
        save(root / ("cat" if i % 3 else "dog") / f"{i:03d}.png", i, 24, 30)
    (root / "cat/copy.png").write_bytes((root / "dog/003.png").read_bytes())
    (root / "cat/recoded.jpg").write_bytes(encoded(pixels(4, 24, 30), "JPEG"))
    (root / "cat/flat.png").write_bytes(encoded(np.full((9, 9, 3), 80, np.uint8)))
    (root / "dog/bad.png").write_text("x")
    return open_data(root)


def test_audit_counts(data):
    found = audit(data)
    assert (found.samples, found.channels, found.unlabelled) == (33, 3, 0)
    assert found.classes == {"cat": 23, "dog": 10}
    assert (found.height, found.width, found.sizes) == ((9, 24, 24), (9, 30, 30), 2)
    assert found.skipped_count == 1
    assert found.skipped[0][0] == "dog/bad.png"
    assert found.flat == 1
    assert (found.exact_extra, found.exact) == (1, [["cat/copy.png", "dog/003.png"]])
    assert (found.near_count, found.near) == (2, [["cat/004.png", "cat/recoded.jpg"]])
    assert json.loads(json.dumps(found.to_json()))["classes"] == found.classes


def test_leaks_exact_and_near(data, tmp_path):
    root = folder(tmp_path / "other", 1000 - 990, height=24, width=30)  # pictures 0..9, byte for byte
    (root / "bright.jpg").write_bytes(encoded((pixels(20, 24, 30) * 0.8 + 30).astype(np.uint8), "JPEG"))
    found = audit(data, open_data(root))
    assert found.other_samples == 11
    assert found.leak_exact == 11  # 0..9 and the copy of 3
    assert found.leak_near == 2  # the recoded 4 and the brightened 20
    pairs = {leak.name: (leak.other, leak.exact) for leak in found.leaks}
    assert pairs["cat/copy.png"] == ("003.png", True)
    assert pairs["cat/020.png"] == ("bright.jpg", False)
    assert pairs["cat/recoded.jpg"] == ("004.png", False)


def test_rotation_accuracy_needs_an_upright_side():
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 255, (400, 16, 16))
    assert rotation_accuracy(noise) == pytest.approx(0.25, abs=0.05)  # standard deviation 0.015
    assert rotation_accuracy(noise + np.linspace(200, 0, 16)[:, None]) > 0.9
    assert rotation_accuracy(noise[:39]) is None


def test_offers():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 100, (400, 12, 12), dtype=np.uint8)
    found = offers(audit(open_data(noise)))
    assert found["variety"] == (True, "400 different pictures")
    assert found["patches"] == (False, "12 px on the short side; patches to hide need 16 or more")
    assert not found["upright"][0]
    assert "no upright side" in found["upright"][1]
    sky = np.clip(noise[:100].repeat(2, axis=2) + np.linspace(150, 0, 12).astype(np.uint8)[:, None], 0, 255)
    found = offers(audit(open_data(sky.repeat(2, axis=1))))
    there = {"variety": False, "patches": True, "upright": True, "colour": False}
    assert {name: found[name][0] for name in found} == there


def test_colours_are_counted_where_channels_differ(tmp_path):
    for i in range(4):
        save(tmp_path / f"grey{i}.png", i, 20, 20 + i, channels=1)  # beside colour they become three channels
    for i in range(12):
        save(tmp_path / f"colour{i}.png", i, 24, 30)
    found = audit(open_data(tmp_path))
    assert found.coloured == 0.75
    assert offers(found)["colour"] == (True, "75% of the pictures have colours")
    rng = np.random.default_rng(0)
    faint = rng.integers(0, 250, (40, 16, 16, 1)) + rng.integers(0, 4, (40, 16, 16, 3))  # what JPEG leaves in greys
    assert audit(open_data(faint.astype(np.uint8))).coloured == 0


def test_tasks_want_what_data_can_offer():
    rng = np.random.default_rng(0)
    known = set(offers(audit(open_data(rng.integers(0, 255, (4, 8, 8), dtype=np.uint8)))))
    texts = open_data([text for text, _ in english()])
    assert isinstance(texts, TextSource)
    words = set(text_offers(audit_texts(texts)))
    bounds, item = np.array([[0, 3], [3, 5]]), np.array([0, 1, 0, 1, 0], np.int32)
    log = EventSource(["a", "b"], ["x", "y"], bounds, item, hashes=np.zeros(2, np.uint64))
    offered = {"image": known, "text": words, "event": set(event_offers(audit_events(log, None)))}
    assert all(find(name).wants <= offered[kind] for name in available() for kind in sorted(find(name).kinds)[:1])


def test_a_resized_copy_on_an_even_background_is_near(tmp_path):
    """Averages of an even colour differ by rounding alone, which is no edge."""
    for k in range(12):
        draw = np.random.default_rng(k)
        picture = np.full((240, 240, 3), (201, 127, 30), np.uint8)
        for _ in range(4):
            (top, left), (height, width) = draw.integers(60, 150, 2), draw.integers(15, 60, 2)
            picture[top : top + height, left : left + width] = draw.integers(0, 80, 3)
        (tmp_path / f"{k:02d}.png").write_bytes(encoded(picture))
        small = Image.fromarray(picture).resize((203, 203), Image.Resampling.BICUBIC)
        (tmp_path / f"{k:02d} small.png").write_bytes(encoded(np.asarray(small)))
    found = audit(open_data(tmp_path, cache=False))
    assert (found.near_count, len(found.near)) == (24, 12)


def test_a_band_that_most_codes_share_takes_no_quadratic_time(monkeypatch):
    """Codes of which half is the same, as even margins give: near ones are found all the same."""
    monkeypatch.setattr("selftaught.data.similar._WINDOW", 8)
    compared = []
    true = np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda x: (compared.append(len(x)), true(x))[1])
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**32, 1000, dtype=np.uint64) << np.uint64(16)
    codes = np.concatenate([codes, codes[:200] ^ np.uint64(1 << 20), codes[200:400] ^ np.uint64(1 << 40 | 1 << 41)])
    grey = rng.uniform(0, 255, (1000, 4, 4))
    i, j = near_pairs(codes, np.concatenate([grey, grey[:400]]))
    assert list(zip(i.tolist(), j.tolist())) == [(k, 1000 + k) for k in range(400)]
    assert sum(compared) < 4 * 8 * 1400
