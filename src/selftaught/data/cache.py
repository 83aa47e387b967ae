"""Folders of prepared data: found by a content key, written beside and renamed into place, safe among many writers."""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selftaught.errors import RunStopped, UserError

_STALE_SECONDS = 6 * 3600
_MARGIN = 256 * 2**20  # bytes left free on the disk
_FULL = (errno.ENOSPC, errno.EDQUOT)


def usual_root() -> Path:
    """Where prepared data goes where nobody says another place."""
    return Path.home() / ".cache" / "selftaught" / "prepared"


def cache_root(cache: Path | None) -> Path:
    """Where prepared data goes: `cache`, else $SELFTAUGHT_CACHE, else ~/.cache/selftaught/prepared."""
    if cache is not None:
        return cache
    given = os.environ.get("SELFTAUGHT_CACHE")
    return Path(given) if given else usual_root()


def cache_or_none() -> Path | None:
    """Where prepared data goes by default, or None where $SELFTAUGHT_CACHE is off."""
    return None if os.environ.get("SELFTAUGHT_CACHE") == "off" else cache_root(None)


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written at `folder`, which need not exist yet, less a margin."""
    while not folder.exists():
        folder = folder.parent
    return max(0, shutil.disk_usage(folder).free - _MARGIN)


def show_bytes(n: int) -> str:
    """A size for people: 153 MB, 1.2 GB."""
    size = float(n)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


@contextmanager
def writing(root: Path) -> Iterator[tuple[Path, Callable[[str], Path]]]:
    """A new folder below `root` to write into, and `commit(key)`, which makes it `root/key` and returns that path.

    Commit syncs every file, then renames; another writer that finished first wins and this copy is dropped. Without a
    commit, and on any error, the folder is removed. Raises RunStopped where the disk gets full, UserError where `root`
    cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        folder = root / f".{os.getpid()}-{secrets.token_hex(6)}.tmp"
        folder.mkdir()
    except OSError as error:
        raise UserError(
            f"cannot write the prepared cache in {root}: {error.strerror}; set SELFTAUGHT_CACHE to a folder that can"
        ) from None

    def commit(key: str) -> Path:
        _sync(folder)
        final = root / key
        try:
            folder.rename(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        _sync_one(root)
        return final

    try:
        yield folder, commit
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise RunStopped(
            f"disk full while writing the prepared cache in {root}; its unfinished part was removed: free some space, "
            "or set SELFTAUGHT_CACHE to a folder on another disk"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a damaged prepared folder, so that it can be written again; whoever has it open keeps what it opened."""
    aside = folder.with_name(f".{os.getpid()}-{secrets.token_hex(6)}.tmp")
    try:
        folder.rename(aside)
    except FileNotFoundError:  # another process was faster
        return
    shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    """Drop what killed writers left: temporary folders in which nothing was written for hours."""
    for folder in root.glob(".*.tmp"):
        try:
            newest = max(p.stat().st_mtime for p in [folder, *folder.iterdir()])
        except OSError:  # its writer has just finished
            continue
        if time.time() - newest > _STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
