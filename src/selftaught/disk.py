"""Files that survive a crash: synced, checksummed, renamed into place; and a full disk said in one line."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from selftaught.errors import RunStopped


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: a reader sees the old or the new text, never a part.

    Bytes of a path that are no UTF-8 become \\udce9, from which JSON reads the same path.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def filling(path: Path) -> Iterator[None]:
    """Around whatever writes `path`: a full disk is said in one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise disk_error(error, path) or error from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: it takes its place when all is on the disk, and is gone after any error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with filling(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def appearing(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A folder beside `folder` to fill: it takes that name when all is on the disk, and is gone after any error.

    replace: what has the name by then gives way; else that is an error.
    """
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        with filling(folder):
            temporary.mkdir(parents=True)
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            if replace:
                shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            sync(temporary.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def disk_error(error: BaseException, path: Path) -> RunStopped | None:
    """The one-line error for a full disk, or None if `error` is something else (safetensors hides the number)."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or "No space left" in str(error) or "File too large" in str(error):
        return RunStopped(
            f"disk full while writing '{path}'; what was saved before is whole. Free space and type the same command"
        )
    return None
