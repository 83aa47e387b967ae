"""Names that are no UTF-8, and links that lead nowhere: what is listed can be written, what cannot be read is left out."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, folder, pixels, save, tar

from selftaught import disk
from selftaught.data import open_data
from selftaught.data.texts import TextSource

LATIN = os.fsdecode(b"caf\xe9")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    try:
        save(tmp_path / "in" / LATIN / f"{LATIN}.png", 1)
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    save(tmp_path / "in" / os.fsdecode(b"caf\xe8") / "a.png", 2)
    return tmp_path / "in"


@pytest.mark.parametrize("cache", [None, False])
def test_pictures_have_names_that_can_be_written(root: Path, cache: bool | None) -> None:
    (root / LATIN / f"bad {LATIN}.png").write_text("no picture")
    source = open_data(root, cache=cache, max_bad=0.5)
    assert list(source.names) == ["caf\\udce8/a.png", "caf\\udce9/caf\\udce9.png"]
    assert source.classes == ["caf\\udce8", "caf\\udce9"]
    assert [name for name, _ in source.skipped] == ["caf\\udce9/bad caf\\udce9.png"]
    np.testing.assert_array_equal(source.fetch(np.array([1]))["pixels"][0].permute(1, 2, 0).numpy(), pixels(1))
    listed = open_data([os.fspath(path) for path in sorted(root.rglob("*a*.png")) if "bad" not in path.name])
    for name in [*source.names, *listed.names]:
        name.encode("utf-8")


def test_members_of_a_tar(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{LATIN}/{i}.png": encoded(pixels(i)) for i in range(3)})
    assert list(open_data(path).names) == [f"a.tar/caf\\udce9/{i}.png" for i in range(3)]


def test_texts(root: Path, tmp_path: Path) -> None:
    for n, place in enumerate(sorted(root.iterdir())):
        next(place.iterdir()).unlink()
        (place / f"{LATIN}.txt").write_text(f"a text {n}")
    for _ in range(2):  # written, then reused
        source = open_data(root)
        assert isinstance(source, TextSource)
        assert source.classes == ["caf\\udce8", "caf\\udce9"]
        assert list(source.names) == [f"{name}/caf\\udce9.txt" for name in source.classes]
    lines = tmp_path / f"{LATIN}.jsonl"
    lines.write_text('{"text": "a", "label": "\\ud800"}\n{"text": "b", "label": "x"}\n')
    source = open_data(lines)
    assert list(source.names) == ["caf\\udce9.jsonl:1", "caf\\udce9.jsonl:2"]
    assert source.classes == ["\\ud800", "x"]


def test_a_path_in_json_is_read_again(tmp_path: Path) -> None:
    disk.write_json(tmp_path / "a.json", {"data": f"/in/{LATIN}"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"data": f"/in/{LATIN}"}


def test_links_that_cannot_be_followed_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, 60)
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "locked").symlink_to("elsewhere")
    scandir = os.scandir  # the tests may run as root, whom no permission stops

    class Locked:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.is_symlink, self.is_file, self.stat = (
                entry.name,
                entry.is_symlink,
                entry.is_file,
                entry.stat,
            )
            self._entry = entry

        def is_dir(self) -> bool:
            if self.name == "locked":
                raise PermissionError(errno.EACCES, "Permission denied")
            return self._entry.is_dir()

    class Listed:
        def __init__(self, path: Path) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> list[Locked]:
            return [Locked(entry) for entry in self._entries]

        def __exit__(self, *error: object) -> None:
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Listed)
    source = open_data(tmp_path)
    assert len(source) == 60
    assert source.skipped == [("locked", "no permission to read"), ("loop.png", os.strerror(errno.ELOOP).lower())]
