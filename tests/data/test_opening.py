import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import bomb, encoded, folder, pixels, save, tar
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from selftaught.data import open_data
from selftaught.errors import UserError


def first(source, index):
    """One sample of a source as [C, h, w], its padding cut off."""
    batch = source.fetch(np.array([index]))
    height, width = batch["size"][0].tolist()
    return batch["pixels"][0, :, :height, :width].numpy()


def channels_first(array):
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@pytest.mark.parametrize("cache", [None, False])
class TestFolder:
    def test_fetches_the_pixels_of_each_file(self, tmp_path, cache):
        source = open_data(folder(tmp_path, 5), cache=cache)
        assert (len(source), source.kind, source.channels) == (5, "image", 3)
        assert source.labels is None
        assert source.classes == []
        batch = source.fetch(np.array([3, 0]))
        assert batch["pixels"].dtype == torch.uint8
        assert batch["size"].tolist() == [[12, 12]] * 2
        for row, seed in enumerate((3, 0)):
            np.testing.assert_array_equal(batch["pixels"][row].numpy(), channels_first(pixels(seed)))

    def test_mixed_sizes_lie_in_the_upper_left_corner_of_zeros(self, tmp_path, cache):
        save(tmp_path / "a.png", 1, 10, 20)
        save(tmp_path / "b.png", 2, 30, 8)
        source = open_data(tmp_path, cache=cache)
        batch = source.fetch(np.array([0, 1]))
        assert batch["pixels"].shape == (2, 3, 30, 20)
        assert batch["size"].tolist() == [[10, 20], [30, 8]]
        assert source.sizes.tolist() == [[10, 20], [30, 8]]
        np.testing.assert_array_equal(batch["pixels"][0, :, :10, :20].numpy(), channels_first(pixels(1, 10, 20)))
        assert batch["pixels"][0, :, 10:].sum() == 0
        assert batch["pixels"][1, :, :, 8:].sum() == 0

    def test_grey_among_colour_becomes_rgb(self, tmp_path, cache):
        save(tmp_path / "a.png", 1, channels=1)
        save(tmp_path / "b.png", 2)
        source = open_data(tmp_path, cache=cache)
        assert source.channels == 3
        np.testing.assert_array_equal(first(source, 0), np.repeat(pixels(1, channels=1)[None], 3, axis=0))

    def test_grey_alone_has_one_channel(self, tmp_path, cache):
        source = open_data(folder(tmp_path, 3, channels=1), cache=cache)
        assert source.channels == 1
        assert first(source, 0).shape == (1, 12, 12)

    def test_short_side_shrinks_larger_pictures_only(self, tmp_path, cache):
        save(tmp_path / "a.jpg", 1, 64, 96)
        save(tmp_path / "b.jpg", 2, 12, 12)
        source = open_data(tmp_path, cache=cache, short_side=16)
        assert source.sizes.tolist() == [[16, 24], [12, 12]]
        assert source.fetch(np.array([0, 1]))["size"].tolist() == [[16, 24], [12, 12]]

    def test_bad_files_are_left_out_with_reasons(self, tmp_path, cache):
        folder(tmp_path, 8)
        whole = encoded(pixels(9, 32, 32), "JPEG")
        (tmp_path / "text.jpg").write_text("not a picture")
        (tmp_path / "zero.jpg").touch()
        (tmp_path / "point.png").write_bytes(encoded(pixels(1, 1, 1)))
        (tmp_path / "bomb.png").write_bytes(bomb(8128))
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "gone.png").symlink_to("nowhere.png")
        (tmp_path / "cut.jpg").write_bytes(whole[:20])
        source = open_data(tmp_path, cache=cache, max_bad=0.5)
        reasons = dict(source.skipped)
        assert len(source) == 8
        assert set(reasons) == {"text.jpg", "zero.jpg", "point.png", "bomb.png", "pipe.png", "gone.png", "cut.jpg"}
        assert "not a picture" in reasons["text.jpg"]
        assert "empty" in reasons["zero.jpg"]
        assert "1 x 1 pixels" in reasons["point.png"]
        assert "megapixels" in reasons["bomb.png"]
        assert reasons["pipe.png"] == "not a regular file"
        assert reasons["gone.png"] == "broken link"

    def test_too_many_bad_files_stop_with_count_reasons_and_fix(self, tmp_path, cache):
        folder(tmp_path, 8)
        (tmp_path / "bad.jpg").write_text("no")
        with pytest.raises(UserError, match=r"1 of 9 pictures .* more than 5% \(bad.jpg: .*repair or remove"):
            open_data(tmp_path, cache=cache)

    def test_all_bad(self, tmp_path, cache):
        for name in "abcd":
            (tmp_path / f"{name}.jpg").write_text("no")
        with pytest.raises(UserError, match=r"4 of 4 pictures .*a.jpg.*b.jpg.*c.jpg: [^;]*; repair"):
            open_data(tmp_path, cache=cache, max_bad=1.0)

    def test_hashes_and_fingerprint_follow_the_content(self, tmp_path, cache):
        folder(tmp_path / "x", 4)
        shutil.copy(tmp_path / "x" / "001.png", tmp_path / "x" / "009.png")
        source = open_data(tmp_path / "x", cache=cache)
        assert source.hashes.dtype == np.uint64
        assert source.hashes[1] == source.hashes[4]
        assert len(np.unique(source.hashes)) == 4
        shutil.copytree(tmp_path / "x", tmp_path / "y")
        assert open_data(tmp_path / "y", cache=cache).fingerprint == source.fingerprint
        save(tmp_path / "y" / "000.png", 77)
        assert open_data(tmp_path / "y", cache=cache).fingerprint != source.fingerprint

    def test_subset_of_subset(self, tmp_path, cache):
        source = open_data(folder(tmp_path, 6), cache=cache)
        part = source.subset(np.array([5, 1, 3])).subset(np.array([2, 0]))
        assert len(part) == 2
        assert list(part.names) == ["003.png", "005.png"]
        assert part.hashes.tolist() == source.hashes[[3, 5]].tolist()
        np.testing.assert_array_equal(first(part, 1), channels_first(pixels(5)))


class TestFolderShape:
    def test_class_folders_give_labels(self, tmp_path):
        for i, name in enumerate(["cat/a.png", "cat/deep/b.png", "猫/照片.png", "ant/c.png"]):
            save(tmp_path / name, i)
        source = open_data(tmp_path)
        assert source.classes == ["ant", "cat", "猫"]
        assert list(source.names) == ["ant/c.png", "cat/a.png", "cat/deep/b.png", "猫/照片.png"]
        assert source.labels.tolist() == [0, 1, 1, 2]
        np.testing.assert_array_equal(first(source, 3), channels_first(pixels(2)))

    def test_pictures_in_the_root_or_one_folder_mean_no_labels(self, tmp_path):
        save(tmp_path / "x/cat/a.png", 1)
        save(tmp_path / "x/cat/b.png", 2)
        assert open_data(tmp_path / "x").labels is None
        save(tmp_path / "x/dog/b.png", 3)
        assert open_data(tmp_path / "x").labels is not None
        save(tmp_path / "x/c.png", 4)
        assert open_data(tmp_path / "x").labels is None

    def test_splits_are_no_classes(self, tmp_path):
        said = []
        save(tmp_path / "train/cat/a.png", 1)
        save(tmp_path / "test/cat/b.png", 2)
        assert open_data(tmp_path, say=said.append).labels is None
        assert "splits, not classes" in said[0]

    def test_link_loops_end_and_hidden_files_stay_out(self, tmp_path):
        root = folder(tmp_path / "root", 3)
        (root / "again").symlink_to(root)
        (root / "sub").mkdir()
        (root / "sub" / "up").symlink_to("..")
        save(root / ".hidden.png", 8)
        save(root / "__MACOSX" / "x.png", 9)
        folder(tmp_path / "elsewhere", 2)
        (root / "link").symlink_to(tmp_path / "elsewhere")
        assert list(open_data(root).names) == ["000.png", "001.png", "002.png", "link/000.png", "link/001.png"]

    def test_empty_folder_says_what_it_holds(self, tmp_path):
        with pytest.raises(UserError, match="it is empty"):
            open_data(tmp_path)
        (tmp_path / "a.heic").touch()
        with pytest.raises(UserError, match=r"it holds 1 \.heic"):
            open_data(tmp_path)

    def test_no_permission(self, tmp_path, monkeypatch):
        folder(tmp_path, 40)
        save(tmp_path / "locked/a.png", 50)
        scandir = os.scandir  # the tests may run as root, whom no permission stops

        def locked(path, which):
            if os.fspath(path).rstrip("/") == os.fspath(which):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", lambda path: locked(path, tmp_path / "locked"))
        assert open_data(tmp_path).skipped == [("locked/", "no permission to read")]
        monkeypatch.setattr(os, "scandir", lambda path: locked(path, tmp_path))
        with pytest.raises(UserError, match="no permission to read"):
            open_data(tmp_path)

    @pytest.mark.parametrize("where", ["one.png", "."])
    def test_one_image_only(self, tmp_path, where):
        save(tmp_path / "one.png", 1)
        with pytest.raises(UserError, match="one image only"):
            open_data(tmp_path / where)

    def test_missing_or_unknown(self, tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            open_data(tmp_path / "nowhere")
        (tmp_path / "a.xyz").touch()
        with pytest.raises(UserError, match=r"no known kind \('.xyz'\)"):
            open_data(str(tmp_path / "a.xyz"))
        with pytest.raises(UserError, match="data of type int"):
            open_data(3)


class TestLists:
    @pytest.fixture
    def root(self, tmp_path):
        return folder(tmp_path / "图片", 4)

    def test_txt(self, root):
        (root / "list.txt").write_text("003.png\n\n" + str(root / "001.png") + "\n", "utf-8")
        source = open_data(root / "list.txt")
        assert len(source) == 2
        np.testing.assert_array_equal(first(source, 0), channels_first(pixels(3)))

    def test_paths_in_python(self, root, monkeypatch):
        monkeypatch.chdir(root.parent)
        source = open_data([root / "003.png", f"{root.name}/001.png", "absent.png"], max_bad=0.5)
        assert list(source.names) == [str(root / "003.png"), f"{root.name}/001.png"]
        assert source.skipped == [("absent.png", "no such file")]
        np.testing.assert_array_equal(first(source, 1), channels_first(pixels(1)))
        with pytest.raises(UserError, match="the list holds one image only"):
            open_data([root / "003.png"])

    @pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
    def test_tables_with_labels(self, root, kind):
        rows = {"id": ["7", "8", "9"], "File": ["000.png", "002.png", "003.png"], "label": ["10", "", "9"]}
        path = root / f"t.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table(rows), path)
        else:
            mark = "," if kind == "csv" else "\t"
            path.write_text("\n".join(mark.join(r) for r in [list(rows), *zip(*rows.values())]), "utf-8-sig")
        source = open_data(path)
        assert source.classes == ["9", "10"]
        assert source.labels.tolist() == [1, -1, 0]
        assert list(source.names) == rows["File"]

    def test_chosen_columns(self, root):
        (root / "t.csv").write_text("where,path,kind\n000.png,x,b\n001.png,y,a\n")
        source = open_data(root / "t.csv", path_column="where", label_column="kind")
        assert source.labels.tolist() == [1, 0]
        with pytest.raises(UserError, match=r"no column 'wher' \(nearest: 'where'\)"):
            open_data(root / "t.csv", path_column="wher")

    def test_no_path_column_names_the_nearest(self, root):
        (root / "t.csv").write_text("img_path,label\n000.png,1\n")
        with pytest.raises(UserError, match=r"nearest: 'img_path'.*\?path=COLUMN"):
            open_data(root / "t.csv")

    def test_missing_files_count_as_bad(self, root):
        (root / "list.txt").write_text("000.png\n001.png\nnowhere.png\n")
        assert open_data(root / "list.txt", max_bad=0.5).skipped == [("nowhere.png", "no such file")]
        with pytest.raises(UserError, match=r"1 of 3 .*nowhere.png: no such file"):
            open_data(root / "list.txt")

    def test_unreadable_tables(self, root):
        (root / "t.csv").write_bytes(b"path\n\xff\xfe\n")
        with pytest.raises(UserError, match="not UTF-8"):
            open_data(root / "t.csv")
        (root / "t.parquet").write_bytes(b"PAR1nonsense")
        with pytest.raises(UserError, match="cannot be read as parquet"):
            open_data(root / "t.parquet")
        pq.write_table(pa.table({"path": [1, 2]}), root / "n.parquet")
        with pytest.raises(UserError, match="int64, not text"):
            open_data(root / "n.parquet")

    def test_relabelling_keeps_the_prepared_pictures(self, root):
        said = []
        (root / "t.csv").write_text("path,label\n000.png,b\n001.png,a\n")
        open_data(root / "t.csv")
        (root / "t.csv").write_text("path,label\n000.png,c\n001.png,c\n")
        assert open_data(root / "t.csv", say=said.append).classes == ["c"]
        assert said[0].startswith("using prepared cache")


class _Pictures(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class _Stream(IterableDataset):
    def __iter__(self):
        yield 1


@pytest.mark.parametrize("cache", [None, False])
class TestDataset:
    def test_every_kind_of_item(self, cache):
        base = pixels(1)
        tensor = torch.from_numpy(base.transpose(2, 0, 1).copy())
        items = [Image.fromarray(base), tensor, tensor / 255, base]
        source = open_data(_Pictures([(x, y) for x, y in zip(items, [7, 2, 7, 2])]), cache=cache)
        for i in range(4):
            np.testing.assert_array_equal(first(source, i), channels_first(base))
        assert len(set(source.hashes.tolist())) == 1
        assert source.classes == ["2", "7"]
        assert source.labels.tolist() == [1, 0, 1, 0]

    def test_short_side_and_modes(self, cache):
        large = Image.fromarray(pixels(1, 40, 60))
        source = open_data(_Pictures([large, large.convert("P"), large.convert("L")]), cache=cache, short_side=20)
        assert source.sizes.tolist() == [[20, 30]] * 3
        assert source.labels is None

    def test_failing_items_are_bad_samples(self, cache):
        items = [pixels(i) for i in range(4)] + [ValueError("lost"), {"image": 1}, np.full((8, 8), 3.0)]
        skipped = dict(open_data(_Pictures(items), cache=cache, max_bad=0.5).skipped)
        assert skipped["item 4"] == "ValueError: lost"
        assert "type dict" in skipped["item 5"]
        assert "outside [0, 1]" in skipped["item 6"]

    def test_streams_are_refused(self, cache):
        with pytest.raises(UserError, match="map-style"):
            open_data(_Stream(), cache=cache)


class TestShards:
    def test_brace_pattern_folder_and_single(self, tmp_path):
        for s in range(3):
            tar(tmp_path / f"s-{s:02d}.tar", {f"{i}.png": encoded(pixels(10 * s + i)) for i in range(2)})
        by_pattern = open_data(str(tmp_path / "s-{00..02}.tar"))
        by_folder = open_data(tmp_path)
        assert list(by_pattern.names)[2:4] == ["s-01.tar/0.png", "s-01.tar/1.png"]
        assert by_pattern.fingerprint == by_folder.fingerprint
        np.testing.assert_array_equal(first(by_pattern, 5), channels_first(pixels(21)))
        assert len(open_data(tmp_path / "s-01.tar")) == 2
        with pytest.raises(UserError, match=r"s-03.tar: no such file"):
            open_data(str(tmp_path / "s-{00..03}.tar"))

    def test_direct_reading_uses_offsets(self, tmp_path):
        path = tar(tmp_path / "a.tar", {f"{i}.png": encoded(pixels(i)) for i in range(5)})
        source = open_data(path, cache=False)
        np.testing.assert_array_equal(first(source, 4), channels_first(pixels(4)))


def test_columns_are_named_in_the_path(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    table = tmp_path / "t.csv"
    table.write_text("where,species\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    source = open_data(f"{table}?path=where&label=species")
    assert source.classes == ["a", "b"]
    assert len(source) == 4
    with pytest.raises(UserError, match=r"'file' after \? names no column"):
        open_data(f"{table}?file=where")


def test_texts_that_are_called_like_pictures_are_theirs(tmp_path: Path) -> None:
    """Boxes and captions beside pictures, and in a folder of their own beside theirs."""
    for i in range(5):
        save(tmp_path / f"{i}.png", i)
        (tmp_path / f"{i}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert open_data(tmp_path).kind == "image"
    for place, end in (("images", "png"), ("labels", "txt")):
        (tmp_path / place).mkdir()
        for path in tmp_path.glob(f"*.{end}"):
            path.rename(tmp_path / place / path.name)
    assert open_data(tmp_path).kind == "image"
    for i in range(9):
        (tmp_path / f"letter {i}.txt").write_text(f"dear reader {i}")
    assert open_data(tmp_path).kind == "text"


def test_names_of_pictures_that_are_not_there_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"20 of 20 pictures in the list .*\(nope/0.jpg: no such file"):
        open_data([f"nope/{i}.jpg" for i in range(20)])
    assert open_data(["what is in a.jpg", "and in b.jpg", "c.jpg"]).kind == "text"


@pytest.mark.parametrize("change", ["gone", "elsewhere", "damaged"])
def test_a_dataset_with_a_bad_item_is_not_taken_for_another(change, tmp_path):
    """The prepared folder of a dataset is named by what was read; which items were bad, and how many there are, is part of it."""
    good = [(pixels(i), str(i % 3)) for i in range(39)]
    bad = [ValueError("lost")]
    first = open_data(_Pictures([*good[:3], *bad, *good[3:]]), cache=tmp_path)
    assert len(first.skipped) == 1
    other = {"gone": good, "elsewhere": [*good[:30], *bad, *good[30:]]}.get(change, [*good[:3], *bad, *good[3:]])
    if change == "damaged":
        for path in tmp_path.rglob("meta.json"):
            path.write_text("{}")
    second = open_data(_Pictures(other), cache=tmp_path)
    assert [second.classes[y] for y in second.labels] == [label for _, label in good]
    np.testing.assert_array_equal(first.hashes, second.hashes)
