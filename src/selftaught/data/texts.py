"""Text documents as a Source: read once into a prepared folder, and memory-mapped from there."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from selftaught.data.cache import discard, show_bytes, writing
from selftaught.data.listing import Listing, labels_from_folders, number_labels, shown
from selftaught.data.source import Skipped, Source, content_hash
from selftaught.data.text_files import Document, Plan, Progress, documents
from selftaught.errors import UserError

FORMAT = 3  # of the prepared folder; part of its key
_LEAST = 2
_EMPTY = "it is empty"


class TextSource(Source):
    """Documents, UTF-8 in one array. `sizes`: int64 [N], bytes of each."""

    kind = "text"

    def __init__(
        self,
        flat: np.ndarray,
        bounds: np.ndarray,
        *,
        names: Sequence[str],
        hashes: np.ndarray,
        labels: np.ndarray | None,
        classes: list[str],
        skipped: list[Skipped],
    ) -> None:
        self._flat, self._bounds = flat, bounds
        self.names, self.hashes, self.labels, self.classes, self.skipped = names, hashes, labels, classes, skipped
        self.sizes = bounds[:, 1] - bounds[:, 0]

    def __len__(self) -> int:
        return len(self._bounds)

    def text(self, index: int, head: int | None = None) -> str:
        """One document; head: only so many characters from its start, and no more is read than they may take."""
        start, stop = self._bounds[index]
        if head is None or stop - start <= head:
            return self._flat[start:stop].tobytes().decode("utf-8")
        return self._flat[start : min(stop, start + 4 * head)].tobytes().decode("utf-8", "ignore")[:head]

    def texts(self, index: np.ndarray, head: int | None = None) -> Iterator[str]:
        """Documents one by one, or their first `head` characters."""
        return (self.text(int(i), head) for i in index)

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        raise UserError("text has to be tokenized before a batch can be made of it")

    def subset(self, index: np.ndarray) -> "TextSource":
        index = np.arange(len(self))[index]
        return TextSource(
            self._flat,
            self._bounds[index],
            names=[self.names[i] for i in index.tolist()],
            hashes=self.hashes[index],
            labels=None if self.labels is None else self.labels[index],
            classes=self.classes,
            skipped=self.skipped,
        )


def open_texts(
    root: Path,
    stamps: list[tuple[str, int, int]],
    skipped: list[Skipped],
    plan: Plan,
    *,
    cache: Path | None,
    max_bad: float,
    say: Callable[[str], None],
    progress: Progress,
) -> TextSource:
    """The documents of files below `root` (a folder, or the one file itself: then its stamp's name is its name).

    cache: folder for prepared data, or None to keep the documents in memory.
    Raises UserError where there is no text, or too much of it is bad.
    """
    single = not root.is_dir()
    files = [root if single else root / name for name, _, _ in stamps]
    names = [shown(name) for name, _, _ in stamps]
    labels, classes, note = (None, [], None) if single else labels_from_folders(names)
    for line in [note] if note else []:
        say(line)
    listing = Listing(root, names, files, stamps)
    # A hash of what was asked for: the name of a column may be too long for that of a folder.
    asked = hashlib.blake2b(repr(plan).encode(), digest_size=8).hexdigest()
    key = f"text{FORMAT}-{listing.key()}-{asked}"
    folder = None if cache is None else cache / key
    found = None if folder is None else _open(folder)
    if found is not None:
        say(f"using prepared texts {folder} ({show_bytes(int(found[1].sum()))})")
    else:
        of_file = None if labels is None else [classes[i] for i in labels.tolist()]
        read = documents(files, names, plan, single, of_file, say, progress)
        found = _gather(read, skipped, cache, key)
    return _finish(found, root, max_bad, skipped, say)


class _Found(NamedTuple):
    flat: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    names: list[str]
    labels: list[str | None]
    skipped: list[Skipped]


def from_list(texts: Sequence[str], labels: Sequence[Any] | None = None) -> TextSource:
    """Texts that are in memory already."""
    given = [None] * len(texts) if labels is None else [None if v is None else str(v) for v in labels]
    given_texts = (Document(f"text {i}", t, v) for i, (t, v) in enumerate(zip(texts, given, strict=True)))
    return _finish(_gather(given_texts, [], None, ""), Path("the list"), 0.05, [], lambda line: None)


def _finish(found: _Found, root: Path, max_bad: float, before: list[Skipped], say: Callable[[str], None]) -> TextSource:
    skipped = [*before, *found.skipped]
    bad = [s for s in skipped if s.reason != _EMPTY]  # a row without a text is nothing to repair
    total = len(found.sizes) + len(bad)
    if total == 0:
        raise UserError(f"{root} holds no text; every document is empty")
    if len(bad) > max_bad * total:
        first = "; ".join(f"{name}: {reason}" for name, reason in bad[:3])
        raise UserError(
            f"{len(bad)} of {total} documents in {root} cannot be used, more than {max_bad:.0%} ({first}); repair or "
            "remove them"
        )
    if len(found.sizes) < _LEAST:
        raise UserError(f"{root} holds one document only; many are needed (?split=line or ?split=blank after the path)")
    if skipped:
        say(f"{len(skipped)} documents left out, the first {skipped[0].name}: {skipped[0].reason}")
    stops = found.sizes.cumsum()
    labels, classes = number_labels(found.labels)
    return TextSource(
        found.flat,
        np.stack([stops - found.sizes, stops], 1),
        names=found.names,
        hashes=found.hashes,
        labels=labels,
        classes=classes,
        skipped=skipped,
    )


def _gather(read: Iterator[Document], before: list[Skipped], cache: Path | None, key: str) -> _Found:
    """Write the documents into a prepared folder, or keep them in memory."""
    if cache is None:
        parts: list[bytes] = []
        kept = _each(read, parts.append)
        return _Found(np.frombuffer(b"".join(parts), np.uint8), *kept)
    with writing(cache) as (folder, commit):
        with (folder / "text.bin").open("wb") as file:
            sizes, hashes, names, labels, skipped = _each(read, file.write)
        np.save(folder / "sizes.npy", sizes)
        np.save(folder / "hashes.npy", hashes)
        rest = {"format": FORMAT, "names": names, "labels": labels, "skipped": skipped}
        (folder / "meta.json").write_text(json.dumps(rest, ensure_ascii=False), "utf-8", "surrogateescape")
        final = commit(key)
    found = _open(final)
    assert found is not None, final  # it has just been written
    return found


def _each(
    read: Iterator[Document], write: Callable[[bytes], Any]
) -> tuple[np.ndarray, np.ndarray, list[str], list[str | None], list[Skipped]]:
    sizes, hashes, names, labels, skipped = [], [], [], [], []
    for name, text, label, bad, part in read:
        data = (text if part else text.strip()).encode("utf-8", "replace")
        if bad is not None or not data:
            skipped.append(Skipped(name, bad or _EMPTY))
        else:
            write(data)
            sizes.append(len(data))
            hashes.append(content_hash(data))
            names.append(name)
            labels.append(label)
    return np.array(sizes, np.int64), np.array(hashes, np.uint64), names, labels, skipped


def _open(folder: Path) -> _Found | None:
    """A prepared folder, or None where there is none; one that is damaged is removed."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8", "surrogateescape"))
        sizes, hashes = (np.load(folder / f"{n}.npy", allow_pickle=False) for n in ("sizes", "hashes"))
        size = (folder / "text.bin").stat().st_size
        if meta["format"] != FORMAT or size != sizes.sum() or not len(sizes) == len(hashes) == len(meta["names"]):
            raise ValueError("incomplete")
        flat = np.asarray(np.memmap(folder / "text.bin", np.uint8, "r")) if size else np.empty(0, np.uint8)
        skipped = [Skipped(str(name), str(reason)) for name, reason in meta["skipped"]]
        return _Found(flat, sizes, hashes, meta["names"], meta["labels"], skipped)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        discard(folder)
        return None
