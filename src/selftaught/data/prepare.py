"""Pictures decoded once into a memory-mapped cache; or, where that is not wanted or possible, listed for reading."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from selftaught.data.cache import discard, free_bytes, show_bytes, writing
from selftaught.data.images import DirectStore, EqualStore, MixedStore, Pictures, PixelStore, cpu_threads
from selftaught.data.loaders import Loader
from selftaught.data.source import Skipped
from selftaught.errors import BadSample, UserError

FORMAT = 4  # of the prepared folder; part of its key
_BLOCK = 4 * 2**20  # bytes decoded by a thread before it hands them over
_PROBES = 32
T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """Usable pictures: where they are, their positions in what was listed, hashes, shapes (c, h, w), and the rest."""

    store: PixelStore
    kept: np.ndarray
    hashes: np.ndarray
    shapes: np.ndarray
    skipped: list[Skipped]

    @property
    def channels(self) -> int:
        return int(self.shapes[:, 0].max())


@dataclass(frozen=True)
class Limit:
    """How many of the samples may be bad. `before`: those found bad while listing, which count as well."""

    share: float
    before: list[Skipped]
    total: int
    where: str

    def check(self, skipped: list[Skipped], done: int) -> None:
        """Raise UserError once too many of the `done` samples (all, or so many that waiting helps nobody) are bad."""
        bad = [*self.before, *skipped]
        if (len(bad) > self.share * self.total and (done == self.total or done >= 2000)) or len(bad) == self.total:
            so_far = "" if done == self.total else " so far"
            first = "; ".join(f"{name}: {reason}" for name, reason in bad[:3])
            raise UserError(
                f"{len(bad)} of {self.total} pictures in {self.where} cannot be used{so_far}, more than "
                f"{self.share:.0%} ({first}); repair or remove them"
            )


def _in_order(work: Callable[[int], T], n: int, chunk: int, threads: int) -> Iterator[list[T | BadSample]]:
    """work(0) .. work(n-1) by threads, in order, `chunk` at a time; at most two chunks a thread wait to be taken."""

    def run(start: int) -> list[T | BadSample]:
        results: list[T | BadSample] = []
        for index in range(start, min(n, start + chunk)):
            try:
                results.append(work(index))
            except BadSample as error:
                results.append(error)
        return results

    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        waiting: deque[Future[list[T | BadSample]]] = deque()
        try:
            for start in range(0, n, chunk):
                waiting.append(pool.submit(run, start))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def estimate_bytes(loader: Loader) -> int:
    """About how many bytes the decoded pictures take, from the headers of up to 32 of them."""
    probes = np.unique(np.linspace(0, len(loader) - 1, _PROBES).astype(int))
    seen = []
    for index in probes:
        try:
            seen.append(int(np.prod(loader.scan(int(index))[0])))
        except BadSample:
            continue
    return int(np.mean(seen) * len(loader)) if seen else 0


def list_direct(loader: Loader, limit: Limit, progress: Progress) -> Prepared:
    """Read every file once for its hash and header, and decode when fetched."""
    kept, hashes, shapes = [], [], []
    skipped: list[Skipped] = []
    done = 0
    for part in _in_order(loader.scan, len(loader), 64, cpu_threads() if loader.parallel else 1):
        for result in part:
            if isinstance(result, BadSample):
                skipped.append(Skipped(loader.names[done], str(result)))
            else:
                kept.append(done)
                shapes.append(result[0])
                hashes.append(result[1])
            done += 1
        progress(done, len(loader))
        limit.check(skipped, done + len(limit.before))
    arrays = np.array(kept, np.int64), np.array(hashes, np.uint64), np.array(shapes, np.int32).reshape(-1, 3)
    store = _Rerouted(DirectStore(loader, int(arrays[2][:, 0].max()), skipped, limit.share), arrays[0])
    return Prepared(store, *arrays, skipped)


@dataclass(frozen=True)
class _Rerouted(PixelStore):
    """A store whose rows are positions in another one."""

    store: PixelStore
    kept: np.ndarray

    def gather(self, rows: np.ndarray, index: np.ndarray) -> Pictures:
        return self.store.gather(self.kept[rows], index)

    def actual(self, rows: np.ndarray, index: np.ndarray) -> np.ndarray:
        return self.store.actual(self.kept[rows], index)


def prepare(
    loader: Loader,
    root: Path,
    key: str | None,
    limit: Limit,
    *,
    expected: int,
    say: Callable[[str], None],
    progress: Progress,
) -> Prepared:
    """Decode all of `loader` into a folder of `root`, called `key` (None: by its content), and open it.

    expected: about how many bytes that takes. Raises UserError where the disk has too little space or too many
    pictures are bad, RunStopped where the disk gets full; nothing stays behind then.
    """
    free = free_bytes(root)
    if expected * 1.1 > free:
        raise UserError(
            f"the prepared cache takes about {show_bytes(expected)} and {root} has {show_bytes(free)} to spare; free "
            "some space, or set SELFTAUGHT_CACHE to a folder on another disk, or to off to decode at every use (slower)"
        )
    say(f"preparing {len(loader)} pictures once: about {show_bytes(expected)} in {root / (key or '')}")
    threads = cpu_threads() if loader.parallel else 1
    chunk = int(np.clip(_BLOCK * len(loader) // max(1, expected), 1, 256))
    with writing(root) as (folder, commit):
        _write(loader, folder, limit, _in_order(loader.load, len(loader), chunk, threads), progress)
        if key is None:
            parts = [(folder / f"{name}.npy").read_bytes() for name in ("kept", "hashes", "shapes")]
            key = hashlib.blake2b(f"{FORMAT} {len(loader)}".encode() + b"".join(parts)).hexdigest()[:32]
            open_prepared(root / key, len(loader))  # removes one that is damaged
        final = commit(key)
    opened = open_prepared(final, len(loader))
    assert opened is not None, final  # it has just been written
    return opened


def _write(
    loader: Loader,
    folder: Path,
    limit: Limit,
    parts: Iterator[list[tuple[np.ndarray, int] | BadSample]],
    progress: Progress,
) -> None:
    kept, hashes, shapes = [], [], []
    skipped: list[Skipped] = []
    done = 0
    with (folder / "pixels.bin").open("wb") as file:
        for part in parts:
            for result in part:
                if isinstance(result, BadSample):
                    skipped.append(Skipped(loader.names[done], str(result)))
                else:
                    pixels, hashed = result
                    file.write(np.ascontiguousarray(pixels.transpose(1, 2, 0)).data)
                    kept.append(done)
                    hashes.append(hashed)
                    shapes.append(pixels.shape)
                done += 1
            progress(done, len(loader))
            limit.check(skipped, done + len(limit.before))
    np.save(folder / "kept.npy", np.array(kept, np.int64))
    np.save(folder / "hashes.npy", np.array(hashes, np.uint64))
    np.save(folder / "shapes.npy", np.array(shapes, np.int32).reshape(-1, 3))
    meta = {"format": FORMAT, "listed": len(loader), "samples": len(kept), "skipped": skipped}
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), "utf-8", "backslashreplace")


def open_prepared(folder: Path, listed: int) -> Prepared | None:
    """A prepared folder, or None where there is none; one that is damaged is removed."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        kept, hashes, shapes = (np.load(folder / f"{n}.npy", allow_pickle=False) for n in ("kept", "hashes", "shapes"))
        offsets = np.concatenate([[0], np.cumsum(shapes.astype(np.int64).prod(axis=1))])
        whole = (folder / "pixels.bin").stat().st_size == offsets[-1] and meta["listed"] == listed
        if not (whole and meta["format"] == FORMAT and len(kept) == len(hashes) == len(shapes) == meta["samples"]):
            raise ValueError("incomplete")
        # A plain array over the mapping: np.memmap's own indexing costs more than the copy of a small batch.
        flat = np.asarray(np.memmap(folder / "pixels.bin", np.uint8, "r"))
        skipped = [Skipped(str(name), str(reason)) for name, reason in meta["skipped"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        discard(folder)
        return None
    channels = int(shapes[:, 0].max())
    if (shapes == shapes[0]).all():
        c, h, w = shapes[0]
        return Prepared(EqualStore(flat.reshape(-1, h, w, c), channels_last=True), kept, hashes, shapes, skipped)
    return Prepared(MixedStore(flat, offsets, shapes, channels), kept, hashes, shapes, skipped)


def prepared_bytes(folder: Path) -> int:
    """Bytes of a prepared folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
