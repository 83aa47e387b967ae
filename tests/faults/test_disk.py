"""A full disk at any write, a damaged checkpoint, and pickles: nothing lost, nothing executed, one line."""

import errno
import io
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import runs

from selftaught import disk
from selftaught.errors import RunStopped, UserError
from selftaught.train import checkpoint
from selftaught.train.checkpoint import Checkpoint


def _state(step: int) -> Checkpoint:
    g = torch.Generator().manual_seed(step)
    tensors = {
        name: {"a": torch.randn(64, 3, generator=g), "b": torch.randn(5, generator=g)} for name in ("model", "optim")
    }
    return Checkpoint(step, tensors, {"logs": {"log.jsonl": step}, "groups": [{"lr": 0.1 * step}]})


def _assert_equal(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    assert (found.step, found.meta) == (expected.step, expected.meta)
    assert {g: sorted(t) for g, t in found.tensors.items()} == {g: sorted(t) for g, t in expected.tensors.items()}
    for group, tensors in expected.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(found.tensors[group][name], value)


class _FullDisk:
    """Counts the system's writes of the code under test; the N-th fails as on a full disk, after half of its bytes."""

    def __init__(self, fail_at: int | None) -> None:
        self.count, self.fail_at = 0, fail_at

    def _next(self) -> bool:
        self.count += 1
        return self.count == self.fail_at

    @contextmanager
    def installed(self, patch: pytest.MonkeyPatch) -> Iterator["_FullDisk"]:
        save, fsync, write = checkpoint.save_file, os.fsync, Path.write_text
        mkdir, rename = Path.mkdir, Path.rename

        def full(path: object) -> OSError:
            return OSError(errno.ENOSPC, "No space left on device", str(path))

        def save_file(tensors: dict[str, Any], file: Path, **options: Any) -> None:
            save(tensors, file, **options)
            if self._next():
                os.truncate(file, file.stat().st_size // 2)
                # As safetensors reports it: the number is lost.
                from safetensors import SafetensorError

                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        def synced(descriptor: int) -> None:
            if self._next():
                raise full("?")
            fsync(descriptor)

        def write_text(path: Path, text: str, **options: Any) -> int:
            if self._next():
                write(path, text[: len(text) // 2], **options)
                raise full(path)
            return write(path, text, **options)

        def made(path: Path, *arguments: Any, **options: Any) -> None:
            if self._next():
                raise full(path)
            mkdir(path, *arguments, **options)

        def renamed(path: Path, target: Path) -> Path:
            if self._next():
                raise full(path)
            return rename(path, target)

        with patch.context() as p:
            p.setattr(checkpoint, "save_file", save_file)
            p.setattr(os, "fsync", synced)
            p.setattr(Path, "write_text", write_text)
            p.setattr(Path, "mkdir", made)
            p.setattr(Path, "rename", renamed)
            yield self


def _writes_of_a_save(folder: Path, patch: pytest.MonkeyPatch) -> int:
    checkpoint.save(folder, _state(1), keep=1)
    with _FullDisk(None).installed(patch) as counted:
        checkpoint.save(folder, _state(2), keep=1)
    return counted.count


def test_disk_full_at_any_write_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = _writes_of_a_save(tmp_path / "counted", monkeypatch)
    assert total >= 10, "the injection no longer sees the writes"
    for n in range(1, total + 1):
        folder = tmp_path / f"at-{n}"
        checkpoint.save(folder, _state(1), keep=1)
        with _FullDisk(n).installed(monkeypatch), pytest.raises(RunStopped) as caught:
            checkpoint.save(folder, _state(2), keep=1)
        assert caught.value.exit_code == 3
        message = str(caught.value)
        assert message.startswith("disk full while writing '"), n
        assert "\n" not in message
        found, passed = checkpoint.load_last(folder)
        assert passed == [], n
        # The rename may have come before the failing sync: then the new one is whole and visible.
        assert found is not None
        _assert_equal(found, _state(found.step))
        assert not list(folder.glob(".tmp*")), n
        checkpoint.save(folder, _state(3), keep=1)  # space again
        _assert_equal(checkpoint.load_last(folder)[0], _state(3))
        assert checkpoint.steps(folder) == [3]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 32 MB."""
    with tempfile.TemporaryDirectory() as place:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def test_run_on_a_disk_that_fills_up(small_disk: Path) -> None:
    """A real full disk, at several moments: the run says one line, goes on when there is space, and loses nothing."""
    run, ballast = small_disk / "run", small_disk / "ballast"
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--steps", 12, "--batch", 16, "--holdout", 0.25]
    command += ["--set", "train.save_every=2", "--set", "train.keep=1"]
    whole = runs.folder("roomy")
    runs.succeed(*command, "--out", whole)
    one = sum(p.stat().st_size for p in (whole / "checkpoints" / "step-00000012").iterdir())
    stopped = []
    # Nothing but small files fit; half a checkpoint; one and a half; then a half more than there is.
    for space in (4_000, one // 2, one * 3 // 2, one // 2):
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - space))
        message = runs.one_line(runs.run(*command, "--out", run), 3)
        assert message.startswith("disk full while writing '"), message
        steps = checkpoint.steps(run / "checkpoints")
        assert checkpoint.load_last(run / "checkpoints")[1] == []
        stopped.append(steps[-1] if steps else 0)
        ballast.unlink()
    assert stopped[:2] == [0, 0]
    assert stopped[2] > 0, "no checkpoint was there when the disk got full"
    assert stopped[3] >= stopped[2]
    said = runs.succeed(*command, "--out", run).err
    assert f"at step {stopped[-1]} of 12" in said
    same = ("encoder/*", "log.jsonl", "health.jsonl")
    assert runs.files(run, *same) == runs.files(whole, *same)


def test_disk_full_at_the_bundle_and_at_its_readers(small_disk: Path) -> None:
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--steps", 4, "--batch", 16, "--holdout", 0.25]
    run, ballast = small_disk / "run", small_disk / "ballast"
    assert runs.run(*command, "--out", run, kill=("encoder.safetensors", 1)).code == -9
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 8_000))
    shutil.rmtree(run / ".encoder.tmp")
    ballast.write_bytes(bytes(ballast.stat().st_size + shutil.disk_usage(small_disk).free - 16_000))
    assert "disk full while writing" in runs.one_line(runs.run(*command, "--out", run), 3)
    assert not (run / "encoder").exists()
    ballast.unlink()
    runs.succeed(*command, "--out", run)
    for verb, out in (("embed", "f.npy"), ("embed", "f.parquet"), ("evaluate", None), ("finetune", None)):
        before = {p for p in small_disk.rglob("*") if p.is_file()}
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free))
        words = [verb, run, runs.pictures()] + ([] if out is None else ["--out", small_disk / out])
        words += ["--labels", "1", "--draws", "1"] if verb == "evaluate" else []
        message = runs.one_line(runs.run(*words), 3)
        assert message.startswith("disk full while writing '"), message
        ballast.unlink()
        assert {p for p in small_disk.rglob("*") if p.is_file() and p.stat().st_size} - before == set()


def test_disk_full_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.npy"

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunStopped, match=r"disk full while writing '.*out.npy'"), disk.replacing(out) as temporary:
        temporary.write_bytes(b"half")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip a byte", "truncate", "empty", "remove a file", "state.json", "half removed"])
def test_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    for step in (4, 8):
        checkpoint.save(tmp_path, _state(step), keep=2)
    newest = tmp_path / "step-00000008"
    file = newest / "optim.safetensors"
    data = bytearray(file.read_bytes())
    match damage:
        case "flip a byte":
            data[-7] ^= 1
            file.write_bytes(data)
        case "truncate":
            file.write_bytes(data[: len(data) // 2])
        case "empty":
            file.write_bytes(b"")
        case "remove a file":
            file.unlink()
        case "state.json":
            (newest / "state.json").write_text('{"step": 8, "sha')
        case "half removed":  # a kill in the middle of a deletion
            (newest / "state.json").unlink()
    found, passed = checkpoint.load_last(tmp_path)
    _assert_equal(found, _state(4))
    assert len(passed) == 1
    assert "step-00000008" in passed[0]
    assert "\n" not in passed[0]


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--steps", 12, "--batch", 16, "--set", "train.save_every=3"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    runs.succeed(*command, "--out", whole)
    killed = runs.run(*command, "--out", run, kill=("model.safetensors", 4))
    assert killed.code == -9
    file = run / "checkpoints" / "step-00000009" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    said = runs.succeed(*command, "--out", run).err
    assert f"passed over: checkpoint file '{file}' is missing or does not match its checksum" in said
    assert "at step 6 of 12" in said
    same = ("encoder/*", "log.jsonl", "health.jsonl")
    assert runs.files(run, *same) == runs.files(whole, *same)


def test_checkpoint_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, _state(1), keep=1)
    state = tmp_path / "step-00000001" / "state.json"
    for name in ("../x.safetensors", "/etc/passwd", "evil.pkl"):
        state.write_text(f'{{"step": 1, "sha256": {{"{name}": "0"}}}}')
        with pytest.raises(UserError, match=r"only .safetensors files beside it are read"):
            checkpoint.load(state.parent)


class _Payload:
    """A pickle that creates a file when it is opened carelessly."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def _pickles(room: Path, proof: Path) -> list[Path]:
    made = []
    for name in ("zip.pth", "evil.pth", "evil.safetensors", "evil.pkl"):
        path = room / name
        if name == "zip.pth":
            torch.save({"model": _Payload(proof)}, path)
        else:
            path.write_bytes(pickle.dumps(_Payload(proof), protocol=2))
        made.append(path)
    return made


def test_payload_would_be_executed_by_careless_reading(tmp_path: Path, proof: Path) -> None:
    whole, bare = (path.read_bytes() for path in _pickles(tmp_path, proof)[:2])
    torch.load(io.BytesIO(whole), weights_only=False)
    assert proof.is_dir(), "this payload proves nothing"
    proof.rmdir()
    pickle.loads(bare)
    assert proof.is_dir(), "this payload proves nothing"


def test_pickles_are_refused_and_never_executed(tmp_path: Path, proof: Path) -> None:
    data = runs.pictures()
    for path in _pickles(tmp_path, proof):
        pretrain = ["pretrain", data, *runs.ENCODER, "--steps", 2, "--batch", 16, "--out", tmp_path / "run"]
        message = runs.one_line(runs.run(*pretrain, "--weights", path), 2)
        assert path.name in message
        for verb in ("evaluate", "embed", "predict", "finetune"):
            message = runs.one_line(runs.run(verb, path, data, cwd=tmp_path), 2)
            assert message == f"'{path}' is a file; name a run folder or an encoder bundle (a pickle is never opened)"
        assert not proof.exists(), path
    assert "pickle" in runs.one_line(runs.run(*pretrain, "--weights", tmp_path / "zip.pth"), 2)


@pytest.mark.parametrize("place", ["encoder/encoder.safetensors", "checkpoints"])
def test_pickle_inside_a_run_is_refused(tmp_path: Path, proof: Path, place: str) -> None:
    run = tmp_path / "run"
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--steps", 4, "--batch", 16, "--out", run]
    runs.succeed(*command, "--set", "train.save_every=2")
    evil = _pickles(tmp_path, proof)[1].read_bytes()
    if place == "checkpoints":
        shutil.rmtree(run / "encoder")
        for file in (run / "checkpoints").glob("*/model.safetensors"):
            file.write_bytes(evil)
        said = runs.succeed(*command, "--set", "train.save_every=2").err  # from the start
        assert said.count("passed over") == 2
    else:
        (run / place).write_bytes(evil)
        message = runs.one_line(runs.run("embed", run, runs.pictures(), cwd=tmp_path), 2)
        assert "encoder.safetensors" in message
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_objects_are_refused(tmp_path: Path, proof: Path, suffix: str) -> None:
    import numpy as np

    objects = np.array([_Payload(proof), _Payload(proof)], dtype=object)
    path = tmp_path / f"data{suffix}"
    if suffix == ".npy":
        np.save(path, objects, allow_pickle=True)
    else:
        np.savez(path, images=objects)
    runs.one_line(runs.run("pretrain", path, "--steps", 2, "--out", tmp_path / "run"), 2)
    assert not proof.exists()


def test_pickle_as_seen_hashes_is_refused(tmp_path: Path, proof: Path) -> None:
    run = tmp_path / "run"
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, "--steps", 2, "--batch", 16, "--out", run)
    (run / "seen.npy").write_bytes(_pickles(tmp_path, proof)[1].read_bytes())
    runs.one_line(runs.run("evaluate", run, runs.pictures()), 2)
    assert not proof.exists()
