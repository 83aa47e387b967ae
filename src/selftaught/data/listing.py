"""Encoded samples that are located but not yet read: files, or members of tar shards."""

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from selftaught.data.source import Skipped
from selftaught.errors import BadSample, UserError

MAX_FILE_BYTES = 512 * 2**20
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "unlabeled", "unlabelled"}


@dataclass(frozen=True)
class Listing:
    """Where N encoded samples lie.

    names: shown to people, and what orders the samples.
    files: the file that holds each sample. offsets, lengths: int64 [N], the bytes within it (length -1: whole file).
    stamps: what changes when a file does, one per sample or per shard: (relative name, bytes, mtime in ns).
    labels: int64 [N] or None, classes: their names.
    notes: what the user should be told about how the data was read.
    """

    root: Path
    names: Sequence[str]
    files: Sequence[Path]
    stamps: Sequence[tuple[str, int, int]]
    offsets: np.ndarray | None = None
    lengths: np.ndarray | None = None
    labels: np.ndarray | None = None
    classes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one sample. Raises BadSample where they cannot be read."""
        path = self.files[index]
        try:
            if self.offsets is None or self.lengths is None:
                return read_file(path)
            with path.open("rb") as file:
                file.seek(int(self.offsets[index]))
                data = file.read(int(self.lengths[index]))
        except OSError as error:
            raise BadSample(why(error)) from None
        if len(data) < self.lengths[index]:
            raise BadSample("archive ends within this member")
        return data

    def key(self) -> str:
        """Hash of what the samples are, from names, sizes and times alone; so that a reuse reads (almost) nothing.

        The bytes of up to 16 samples are mixed in: archives unpacked with fixed times and fixed-size pictures would
        otherwise share a key.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, size, time in self.stamps:  # in their order: what is prepared is known by its position
            digest.update(f"{name}\0{size}\0{time}\n".encode(errors="surrogateescape"))
        for index in np.unique(np.linspace(0, len(self) - 1, 16).astype(int)) if len(self) else ():
            try:
                digest.update(self._digest(int(index)))
            except BadSample:
                digest.update(b"unreadable")
        return digest.hexdigest()

    def _digest(self, index: int) -> bytes:
        """The hash of one sample's encoded bytes; a whole file's is made without holding it."""
        if self.offsets is not None:
            return hashlib.blake2b(self.read(index)).digest()
        try:
            _check_file(self.files[index])
            with self.files[index].open("rb") as file:
                return hashlib.file_digest(file, hashlib.blake2b).digest()
        except OSError as error:
            raise BadSample(why(error)) from None


def read_file(path: Path) -> bytes:
    """A regular file's bytes; never blocks on a pipe or device. Raises BadSample or OSError."""
    _check_file(path)
    return path.read_bytes()


def _check_file(path: Path) -> None:
    """Raise BadSample for what is no regular file, or a too large one."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadSample("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        lines = "; with ?split=line behind the path each line is a document" if path.suffix.lower() == ".txt" else ""
        raise BadSample(f"file of {status.st_size / 2**20:.0f} MB; limit is {MAX_FILE_BYTES // 2**20} MB{lines}")


def shown(name: str) -> str:
    """A name as it is told and written: bytes of a file's name that are no UTF-8 as \\udce9, which any file can hold."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def why(error: OSError) -> str:
    """A system error as a short reason."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read"
    return (error.strerror or type(error).__name__).lower()


def scan_folder(
    root: Path, suffixes: frozenset[str]
) -> tuple[list[tuple[str, int, int]], list[Skipped], dict[str, int]]:
    """All files below `root` with one of `suffixes`, as sorted stamps; what could not be read; other suffixes' counts.

    Follows symbolic links to folders, each folder once (a loop ends there). Hidden files and folders are left out.
    """
    found: list[tuple[str, int, int]] = []
    skipped: list[Skipped] = []
    others: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                # Real folders come before links to them, so that a folder is known by its own name.
                ordered = sorted(entries, key=lambda e: (e.is_symlink(), e.name))
        except OSError as error:
            if not folder:
                raise UserError(f"cannot read folder {root}: {why(error)}; check its path and permissions") from None
            skipped.append(Skipped(shown(folder), why(error)))
            continue
        below = []
        for entry in ordered:
            name = folder + entry.name
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path per file costs more than its stat
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            try:
                if entry.is_dir():
                    below.append(name + "/")
                elif suffix not in suffixes:
                    others[suffix] = others.get(suffix, 0) + 1
                elif entry.is_file():
                    status = entry.stat()
                    found.append((name, status.st_size, status.st_mtime_ns))
                else:
                    skipped.append(Skipped(shown(name), "broken link" if entry.is_symlink() else "not a regular file"))
            except OSError as error:  # a link to itself, or into a folder that is locked
                skipped.append(Skipped(shown(name), why(error)))
        pending.extend(reversed(below))
    return sorted(found), skipped, others


def labels_from_folders(names: Iterable[str]) -> tuple[np.ndarray | None, list[str], str | None]:
    """(labels, classes, note): the first folder of each name is its class where there are >= 2 and none lies outside.

    Folders that are all called like splits (train, test ...) are no classes: the note says so.
    """
    first = [PurePosixPath(name).parts[0] if "/" in name else None for name in names]
    classes = sorted({part for part in first if part is not None})
    if None in first or len(classes) < 2:
        return None, [], None
    if all(part.lower() in SPLITS for part in classes):
        shown = " and ".join(f"{part}/" for part in classes[:3])
        return (
            None,
            [],
            f"{shown} look like splits, not classes: no labels are read; open one of them to use its classes",
        )
    number = {part: i for i, part in enumerate(classes)}
    return np.array([number[part] for part in first if part is not None], dtype=np.int64), classes, None


def number_labels(values: Sequence[str | None]) -> tuple[np.ndarray | None, list[str]]:
    """(labels int64 [N], classes): distinct values in order (numeric where all are integers); missing ones are -1."""
    known = {value for value in values if value is not None and value != ""}
    if not known:
        return None, []
    if all(value.isascii() and value.removeprefix("-").isdigit() for value in known):
        classes = sorted(known, key=lambda v: (int(v), v))
    else:
        classes = sorted(known)
    number = {value: i for i, value in enumerate(classes)}
    return np.array([number.get(value, -1) if value else -1 for value in values], dtype=np.int64), classes
