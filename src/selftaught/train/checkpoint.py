"""Checkpoints: the full state of a run as safetensors and JSON, written so that a crash at any moment leaves a whole one.

A save goes to a temporary folder, every file and the folder are synced to disk, and a rename makes it visible at once.
Each file's SHA-256 stands in `state.json`; a checkpoint that does not match is passed over for the one before it.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught.disk import file_hash, filling, sync, write_json
from selftaught.errors import UserError

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """step: optimiser steps done. tensors: groups of named tensors ("model", "optim" ...). meta: JSON values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int, protect: int | None = None) -> Path:
    """Write `folder/step-NNNNNNNN` and delete all but the last `keep` and the step `protect`.

    Raises RunStopped on a full disk, with the temporary folder removed.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".tmp-{final.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with filling(final):
            temporary.mkdir(parents=True)
            hashes = {}
            for group, tensors in checkpoint.tensors.items():
                file = temporary / f"{group}.safetensors"
                save_file({name: t.detach().contiguous() for name, t in tensors.items()}, file)
                sync(file)
                hashes[file.name] = file_hash(file)
            state = {"step": checkpoint.step, "sha256": hashes, **checkpoint.meta}
            write_json(temporary / STATE, state)
            sync(temporary)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in steps(folder)[:-keep] if keep else []:
        if old != protect and old != checkpoint.step:
            shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)
    return final


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order."""
    return sorted(int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit())


def clean(folder: Path) -> None:
    """Remove what an interrupted save left behind."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder; UserError where a file is missing, foreign or does not match its checksum."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        step, hashes = int(state.pop("step")), dict(state.pop("sha256"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint '{path}' has no readable {STATE}") from error
    tensors = {}
    for name, expected in hashes.items():
        file = path / name
        if file.parent != path or file.suffix != ".safetensors":
            raise UserError(f"checkpoint '{path}' names the file '{name}'; only .safetensors files beside it are read")
        if not file.is_file() or file_hash(file) != expected:
            raise UserError(f"checkpoint file '{file}' is missing or does not match its checksum")
        try:
            tensors[file.stem] = load_file(file)
        except SafetensorError as error:
            raise UserError(f"checkpoint file '{file}' cannot be read: {error}") from error
    return Checkpoint(step, tensors, state)


def load_last(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a folder (None: there is none) and one line for each that had to be passed over."""
    passed: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return load(folder / f"step-{step:08d}"), passed
        except UserError as error:
            passed.append(str(error))
    return None, passed
