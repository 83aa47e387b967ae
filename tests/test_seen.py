"""What pretraining saw is never tested, and nothing is claimed of what it saw where that is unknown."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from selftaught.data import Source, holdout, open_data
from selftaught.errors import UserError
from selftaught.workflow.evaluate import UNKNOWN, others_saw, split
from tests import runs


@pytest.fixture(scope="module")
def run() -> Path:
    out = runs.folder("seen-run")
    few = ("--steps", 2, "--batch", 16, "--holdout", 0.25)
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, *few, "--out", out)
    return out


@pytest.fixture(autouse=True)
def shared_cache() -> Iterator[None]:
    with mock.patch.dict(os.environ, runs.environment()):
        yield


def _hash(path: Path) -> int:
    return int.from_bytes(hashlib.blake2b(path.read_bytes(), digest_size=8).digest(), "little")


def test_split_learns_from_what_pretraining_saw_only_where_that_teaches(tmp_path: Path) -> None:
    """A few copies of pretraining samples in a test set are left out; they are not all that the probes learn from."""
    other = runs.write_pictures(tmp_path / "other", 120, first=7000)
    hashes = {p: _hash(p) for p in sorted(other.rglob("*.png"))}
    copies = np.array([h for p, h in hashes.items() if p.parent.name in ("arc", "line")][:3], dtype=np.uint64)
    parts = split(other, None, copies, 16, quiet=True)
    assert parts.protocol["split"] == "halves by content hash; pretraining saw neither"
    assert parts.protocol["seen_by_pretraining"] == 3
    used = np.concatenate([parts.train_index, parts.test_index])
    assert len(set(used.tolist())) == len(used) == 117
    assert not set(parts.test.hashes[used].tolist()) & set(copies.tolist())
    seen = np.array([h for i, h in enumerate(hashes.values()) if i % 4], dtype=np.uint64)  # three quarters
    parts = split(other, None, seen, 16, quiet=True)
    assert parts.protocol["split"] == "held out from pretraining by content hash"
    assert (len(parts.train_index), len(parts.test_index)) == (90, 30)
    least = [h for c in parts.test.classes for h in [h for p, h in hashes.items() if p.parent.name == c][:5]]
    assert len(split(other, None, np.array(least, dtype=np.uint64), 16, quiet=True).train_index) == 20


def test_split_tells_what_others_saw_from_what_pretraining_saw(tmp_path: Path) -> None:
    other = runs.write_pictures(tmp_path / "other", 120, first=7000)
    hashes = np.array([_hash(p) for p in sorted(other.rglob("*.png"))], dtype=np.uint64)
    parts = split(other, None, hashes[:3], 16, quiet=True, others=hashes[1:8])
    assert parts.protocol["seen_by_pretraining"] == 3
    assert parts.protocol["seen_by_compared_alone"] == 5
    assert len(parts.train_index) + len(parts.test_index) == 120 - 8


def test_split_claims_nothing_of_a_pretraining_that_is_unknown(tmp_path: Path) -> None:
    other = runs.write_pictures(tmp_path / "other", 120, first=7000)
    nothing = np.empty(0, np.uint64)
    protocol = split(other, None, nothing, 16, quiet=True).protocol
    assert protocol == {
        "seen_by_pretraining": UNKNOWN,
        "split": "halves by content hash; what pretraining saw is unknown",
    }
    test = runs.write_pictures(tmp_path / "test", 60, first=9500)
    assert split(test, other, nothing, 16, quiet=True).protocol["seen_by_pretraining"] == UNKNOWN


def test_evaluate_leaves_out_what_the_encoders_beside_it_saw(run: Path, tmp_path: Path) -> None:
    """Beside a bundle without its run, of which nothing is known."""
    alone = shutil.copytree(run / "encoder", tmp_path / "alone" / "encoder")
    words = ("--labels", 5, "--draws", 1, "--against", run)
    said = runs.succeed("evaluate", alone, runs.pictures(), *words).err
    assert f"'{alone}' has no seen.npy: what it was trained on is unknown" in said
    protocol = json.loads((alone / "evaluation.json").read_text())["protocol"]
    assert protocol["seen_by_pretraining"] == UNKNOWN
    held = json.loads((run / "data.json").read_text())["held_out"]
    assert protocol["train_samples"] + protocol["test_samples"] == held
    assert set(others_saw((str(run),), True).tolist()) == set(np.load(run / "seen.npy").tolist())
    assert len(others_saw(("timm:resnet18", str(alone)), True)) == 0


def _held_out(source: Source, share: float) -> int:
    try:
        return len(holdout(source, share)[1])
    except UserError:
        return 0


def test_one_held_out_sample_is_refused_before_the_run(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", 24)
    source = open_data(data)
    one = next(share for share in np.arange(0.002, 0.5, 0.002) if _held_out(source, share) == 1)
    words = ("pretrain", data, *runs.ENCODER, "--steps", 1, "--batch", 8, "--holdout", one, "--out", tmp_path / "run")
    refused = runs.one_line(runs.run(*words), 2)
    assert "holds 1 of these 24 samples out, and health is measured on 2 at least; use --holdout 0." in refused
    assert not (tmp_path / "run" / "recipe.json").exists()
