import io
import tarfile

import numpy as np
import pytest
from pictures import encoded, pixels, save, tar

from selftaught.data import open_data
from selftaught.data.shards import expand_braces
from selftaught.errors import UserError


def test_labels_from_cls_and_json(tmp_path):
    members = {"a/1.png": encoded(pixels(1)), "a/1.cls": b"12\n"}
    members |= {"a/2.json": b'{"label": 3, "x": [1]}', "a/2.png": encoded(pixels(2))}
    members |= {"a/3.png": encoded(pixels(3)), "a/3.json": b"{broken", "b/1.png": encoded(pixels(4))}
    source = open_data(tar(tmp_path / "a.tar", members))
    assert source.classes == ["3", "12"]
    assert source.labels.tolist() == [1, 0, -1, -1]


def test_a_plain_tar_of_class_folders_is_labelled_like_a_folder(tmp_path):
    names = ["./cat/1.png", "./dog/1.png", "./dog/2.png"]
    source = open_data(tar(tmp_path / "a.tar", {n: encoded(pixels(i)) for i, n in enumerate(names)}))
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [0, 1, 1])


def test_hostile_members_are_listed_and_never_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile.TarFile, "extractall", None)
    monkeypatch.setattr(tarfile.TarFile, "extract", None)
    (tmp_path / "in").mkdir()
    path = tar(tmp_path / "in" / "a.tar", {f"{i}.png": encoded(pixels(i)) for i in range(4)})
    good = encoded(pixels(9))
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("s", tarfile.SYMTYPE),
            ("h", tarfile.LNKTYPE),
            ("d", tarfile.CHRTYPE),
            ("p", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(f"{name}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("/abs.png", "../up.png", "x/../../up.png"):
            info = tarfile.TarInfo(name)
            info.size = len(good)
            archive.addfile(info, io.BytesIO(good))
    before = sorted(tmp_path.rglob("*"))
    source = open_data(path, max_bad=0.9)
    assert sorted(tmp_path.rglob("*")) == before
    assert list(source.names) == [f"a.tar/{i}.png" for i in range(4)]
    assert {name.removeprefix("a.tar/"): reason for name, reason in source.skipped} == {
        "s.png": "symbolic link",
        "h.png": "hard link",
        "d.png": "device",
        "p.png": "pipe",
        "/abs.png": "unsafe member name",
        "../up.png": "unsafe member name",
        "x/../../up.png": "unsafe member name",
    }


@pytest.mark.parametrize("cut", [700, 100])
def test_a_cut_off_shard_gives_what_lies_before_the_cut(tmp_path, cut):
    path = tar(tmp_path / "a.tar", {f"{i}.png": encoded(pixels(i)) for i in range(6)})
    with tarfile.open(path) as archive:
        last = archive.getmember("5.png")
    # 700 bytes before the last member's data: within the member before it; 100: within its header
    path.write_bytes(path.read_bytes()[: last.offset_data - cut])
    source = open_data(path, max_bad=0.5)
    assert 4 <= len(source) < 6
    assert any("ends within" in reason or "cut off after" in reason for _, reason in source.skipped)
    np.testing.assert_array_equal(source.fetch(np.array([3]))["pixels"][0].permute(1, 2, 0).numpy(), pixels(3))


def test_data_behind_the_end_mark_is_not_silently_lost(tmp_path):
    path = tar(tmp_path / "a.tar", {f"{i}.png": encoded(pixels(i)) for i in range(40)})
    path.write_bytes(path.read_bytes() + b"\0" * 2**21)
    assert open_data(path).skipped == [("a.tar", "what follows the end mark, after 40 members, was not read")]


def test_no_tar_and_compressed_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 5000)
    with pytest.raises(UserError, match="no tar archive"):
        open_data(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "b.tar", "w:gz"):
        pass
    with pytest.raises(UserError, match=r"compressed archive.*repack it"):
        open_data(tmp_path / "b.tar")


def test_a_header_that_claims_gigabytes_is_refused_unread(tmp_path):
    save(tmp_path / "x.png", 1)
    path = tar(tmp_path / "a.tar", {f"{i}.png": encoded(pixels(i)) for i in range(3)})
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.XHDTYPE, 2**33
    end = path.read_bytes().rstrip(b"\0")
    whole = end + b"\0" * (-len(end) % 512)
    path.write_bytes(whole + info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    source = open_data(path, max_bad=0.5)
    assert len(source) == 3
    assert "header of 8589934592 bytes" in source.skipped[0].reason


def test_expand_braces():
    assert [str(p) for p in expand_braces("a/{08..10}-{0..1}.tar")] == [
        f"a/{i}-{j}.tar" for i in ("08", "09", "10") for j in "01"
    ]
    with pytest.raises(UserError, match="no ascending range"):
        expand_braces("{9..1}.tar")
