import errno
import os
import threading
import time

import numpy as np
import pytest
import torch
from pictures import encoded, folder, pixels, save

from selftaught.data import cache as cache_room
from selftaught.data import open_data, opening, prepare
from selftaught.errors import RunStopped, UserError
from selftaught.workflow.evaluate import Split, readable
from selftaught.workflow.prepare import fetcher


def everything(root):
    return sorted(p.name for p in root.iterdir())


def test_announced_written_and_reused(tmp_path):
    said, steps = [], []
    root = folder(tmp_path / "in", 40)
    cache = tmp_path / "cache"
    made = open_data(root, cache=cache, say=said.append, progress=lambda *step: steps.append(step))
    (key,) = everything(cache)
    assert said == [f"preparing 40 pictures once: about 17 kB in {cache / key}"]
    assert steps[-1] == (40, 40)
    found = open_data(root, cache=cache, say=said.append)
    assert said[1].startswith(f"using prepared cache {cache / key} (")
    assert len(said) == 2
    assert found.fingerprint == made.fingerprint
    index = np.array([39, 3, 3])
    assert found.fetch(index)["pixels"].equal(made.fetch(index)["pixels"])


@pytest.mark.parametrize("change", ["edit", "add", "rename", "short_side"])
def test_any_change_of_content_or_size_makes_a_new_one(tmp_path, change):
    root = folder(tmp_path / "in", 5)
    cache = tmp_path / "cache"
    open_data(root, cache=cache)
    if change == "edit":
        save(root / "004.png", 99)
    elif change == "add":
        save(root / "005.png", 5)
    elif change == "rename":
        (root / "004.png").rename(root / "009.png")
    source = open_data(root, cache=cache, short_side=8 if change == "short_side" else None)
    assert len(everything(cache)) == 2
    if change == "edit":
        np.testing.assert_array_equal(source.fetch(np.array([4]))["pixels"][0].permute(1, 2, 0).numpy(), pixels(99))


def test_equal_names_sizes_and_times_do_not_share_a_cache(tmp_path):
    for name, shift in (("a", 0), ("b", 100)):
        for i in range(3):
            save(tmp_path / name / f"{i}.png", i)
            (tmp_path / name / f"{i}.png").write_bytes(encoded(pixels(i + shift), "BMP"))
            os.utime(tmp_path / name / f"{i}.png", ns=(0, 0))
    a, b = (open_data(tmp_path / name) for name in "ab")
    assert a.fingerprint != b.fingerprint


@pytest.mark.parametrize("damage", ["cut", "meta", "missing", "format"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    root = folder(tmp_path / "in", 5)
    cache = tmp_path / "cache"
    before = open_data(root, cache=cache).fetch(np.arange(5))["pixels"].clone()
    (place,) = cache.iterdir()
    if damage == "cut":
        os.truncate(place / "pixels.bin", 100)
    elif damage == "meta":
        (place / "meta.json").write_text("{")
    elif damage == "missing":
        (place / "hashes.npy").unlink()
    else:
        text = (place / "meta.json").read_text()
        (place / "meta.json").write_text(text.replace(f'"format": {prepare.FORMAT}', '"format": 0'))
    said = []
    after = open_data(root, cache=cache, say=said.append)
    assert said[0].startswith("preparing")
    assert after.fetch(np.arange(5))["pixels"].equal(before)
    assert everything(cache) == [place.name]


def test_a_truncated_picture_is_left_out_and_stays_so(tmp_path):
    root = folder(tmp_path / "in", 30)
    whole = encoded(pixels(1, 64, 64), "JPEG")
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):  # written, then reused
        source = open_data(root)
        assert source.skipped == [("cut.jpg", "truncated JPEG")]
        assert len(source) == 30
    with pytest.raises(UserError, match="1 of 31 pictures"):
        open_data(root, max_bad=0.01)


def test_many_writers_at_once(tmp_path):
    root = folder(tmp_path / "in", 30)
    cache = tmp_path / "cache"
    start = threading.Barrier(4)
    prints = []

    def work():
        start.wait()
        prints.append(open_data(root, cache=cache).fetch(np.arange(30))["pixels"].sum().item())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(prints) == 4
    assert len(set(prints)) == 1
    assert len(everything(cache)) == 1


def test_too_little_space(tmp_path, monkeypatch):
    root = folder(tmp_path / "in", 10)
    monkeypatch.setattr(prepare, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(opening, "free_bytes", lambda _: 1000)
    with pytest.raises(
        UserError, match=r"takes about 4 kB and .* has 1 kB to spare; free some space.*SELFTAUGHT_CACHE"
    ):
        open_data(root, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    said = []
    source = open_data(root, say=said.append)
    assert "decoded at every use" in said[0]
    np.testing.assert_array_equal(source.fetch(np.array([7]))["pixels"][0].permute(1, 2, 0).numpy(), pixels(7))


def test_disk_full_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare.np, "save", full)
    with pytest.raises(RunStopped, match=r"disk full while writing the prepared cache.*removed: free some space"):
        open_data(folder(tmp_path / "in", 4), cache=tmp_path / "cache")
    assert everything(tmp_path / "cache") == []


def test_a_stopped_preparation_leaves_nothing(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_data(folder(tmp_path / "in", 4), cache=tmp_path / "cache", progress=stop)
    assert everything(tmp_path / "cache") == []


def test_what_killed_writers_left_goes_after_hours(tmp_path):
    cache = tmp_path / "cache"
    for name in (".1-old.tmp", ".2-new.tmp"):
        (cache / name).mkdir(parents=True)
        (cache / name / "pixels.bin").touch()
    long_ago = time.time() - 2 * cache_room._STALE_SECONDS
    for path in (cache / ".1-old.tmp" / "pixels.bin", cache / ".1-old.tmp"):
        os.utime(path, (long_ago, long_ago))
    open_data(folder(tmp_path / "in", 4), cache=cache)
    assert [name for name in everything(cache) if name.endswith(".tmp")] == [".2-new.tmp"]


def test_unwritable_cache(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the prepared cache.*SELFTAUGHT_CACHE"):
        open_data(folder(tmp_path / "in", 4), cache=tmp_path / "file" / "x")


class TestDirect:
    def test_a_sample_that_fails_gives_way_to_the_next_good_one(self, tmp_path):
        root = folder(tmp_path, 40)
        source = open_data(root, cache=False)
        (root / "038.png").write_text("gone bad")
        (root / "039.png").unlink()
        for _ in range(2):
            batch = source.fetch(np.array([38, 39, 1]))
            for row, seed in enumerate((0, 0, 1)):
                np.testing.assert_array_equal(batch["pixels"][row].permute(1, 2, 0).numpy(), pixels(seed))
        assert source.actual(np.array([38, 39, 1])).tolist() == [0, 0, 1]
        assert sorted(name for name, _ in source.skipped) == ["038.png", "039.png"]
        assert dict(source.skipped)["039.png"] == "no such file"

    def test_a_subset_replaces_from_within_itself(self, tmp_path):
        root = folder(tmp_path, 40)
        part = open_data(root, cache=False).subset(np.array([4, 9, 2]))
        (root / "009.png").unlink()
        np.testing.assert_array_equal(part.fetch(np.array([1]))["pixels"][0].permute(1, 2, 0).numpy(), pixels(2))

    def test_labels_and_figures_follow_the_picture_that_was_read(self, tmp_path):
        for name in "ab":
            folder(tmp_path / name, 20)
        source = open_data(tmp_path, cache=False)
        fetch = fetcher(source, np.arange(40), seed=0, labels=True)
        (tmp_path / "a" / "019.png").unlink()
        (tmp_path / "b" / "019.png").unlink()
        assert fetch(np.array([18, 19, 39]), 0).labels.tolist() == [0, 1, 0]
        parts = Split(source, np.arange(20), source, np.arange(20, 40), {})
        matrices = {"raw": (torch.arange(20)[:, None], torch.arange(20, 40)[:, None])}
        parts, matrices = readable(parts, matrices)
        assert parts.protocol == {"left_out_as_unreadable": 2}
        assert matrices["raw"][0][:, 0].tolist() == parts.train_index.tolist() == list(range(19))
        assert matrices["raw"][1][:, 0].tolist() == parts.test_index.tolist() == list(range(20, 39))

    def test_what_stands_in_for_a_bad_sample_teaches_as_well(self, tmp_path):
        for name in "ab":
            folder(tmp_path / name, 20)
        source = open_data(tmp_path, cache=False)
        source.labels[20:] = -1
        fetch = fetcher(source, np.array([3, 7, 19]), seed=0, labels=True)  # the rest is held out, or has no label
        (tmp_path / "a" / "019.png").unlink()
        (tmp_path / "a" / "007.png").unlink()
        batch = fetch(np.array([2, 1]), 0)
        assert batch.labels.tolist() == [0, 0]
        assert batch.index.tolist() == [19, 7]
        for row in range(2):
            np.testing.assert_array_equal(batch.inputs["pixels"][row].permute(1, 2, 0).numpy(), pixels(3))

    def test_a_lost_disk_stops_the_run(self, tmp_path):
        root = folder(tmp_path, 10)
        source = open_data(root, cache=False)
        for path in root.iterdir():
            path.unlink()
        with pytest.raises(RunStopped, match="is the disk still there"):
            source.fetch(np.arange(10))


def test_a_list_in_another_order_has_a_cache_of_its_own(tmp_path):
    folder(tmp_path, 60)
    rows = [f"{i:03d}.png,{i}\n" for i in range(60)]
    table = tmp_path / "t.csv"
    for order in (list(range(60)), [0, 2, 1, *range(3, 60)]):
        table.write_text("path,label\n" + "".join(rows[i] for i in order))
        source = open_data(table)
        assert [source.classes[k] for k in source.labels] == [str(i) for i in order]
        batch = source.fetch(np.array([1, 2]))["pixels"]
        for row in range(2):
            np.testing.assert_array_equal(batch[row].permute(1, 2, 0).numpy(), pixels(order[1 + row]))
