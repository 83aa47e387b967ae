"""Tar shards (the WebDataset convention): read in place, never extracted."""

import json
import re
import tarfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from selftaught.data.listing import MAX_FILE_BYTES, Listing, labels_from_folders, number_labels, shown, why
from selftaught.data.source import Skipped
from selftaught.errors import UserError

MAX_MEMBERS = 20_000_000
_MAX_HEADER = 2**20  # a long name or a pax header; real ones have a few hundred bytes
_MAX_LABEL = 2**16
_MAX_PADDING = 2**20  # zeros that writers leave after the end mark
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABEL_KEYS = ("label", "cls", "class", "category")


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


class _Capped:
    """The file under a TarFile, with a bound on one read: tarfile holds a header's whole declared length in memory."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"header of {size} bytes")
        return self._file.read(size)


def expand_braces(pattern: str) -> list[Path]:
    """`shard-{0000..0009}.tar` to its ten paths, zero-padded like the first bound."""
    match = _BRACES.search(pattern)
    if match is None:
        return [Path(pattern)]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < 100_000:
        raise UserError(f"{match[0]} in '{pattern}' is no ascending range of at most 100000 shards")
    width = len(match[1])
    return [
        p
        for i in range(first, last + 1)
        for p in expand_braces(f"{pattern[: match.start()]}{i:0{width}d}{pattern[match.end() :]}")
    ]


def list_shards(root: Path, shards: list[Path], suffixes: frozenset[str]) -> Listing:
    """All regular members of `shards` with one of `suffixes`; key.cls or key.json beside key.jpg holds its label.

    A plain tar of class folders is labelled like a folder. Links, devices, absolute names and names with `..` are
    left out and listed as skipped; a damaged or cut-off shard gives the members before the damage.
    Raises UserError for a shard that is missing or compressed.
    """
    names: list[str] = []
    members: list[str] = []
    files: list[Path] = []
    where: list[tuple[int, int]] = []
    values: list[str | None] = []
    stamps, skipped = [], []
    for shard in shards:
        try:
            status = shard.stat()
        except OSError as error:
            raise UserError(f"cannot read shard {shard}: {why(error)}; check the pattern or the file") from None
        stamps.append((shard.name, status.st_size, status.st_mtime_ns))
        pictures, labels, bad = _index(shard, suffixes)
        skipped += [Skipped(shown(f"{shard.name}/{name}" if name else shard.name), reason) for name, reason in bad]
        for member in pictures:
            names.append(shown(f"{shard.name}/{member.name}"))
            members.append(shown(member.name))
            files.append(shard)
            where.append((member.offset, member.size))
            values.append(labels.get(_key(member.name)))
        if len(names) > MAX_MEMBERS:
            raise UserError(f"more than {MAX_MEMBERS} pictures in {root}; open fewer shards at once")
    found, classes = number_labels(values)
    note = None
    if found is None:
        found, classes, note = labels_from_folders(members)
    place = np.array(where, dtype=np.int64).reshape(-1, 2)
    return Listing(
        root, names, files, stamps, place[:, 0], place[:, 1], found, classes, skipped, [note] if note else []
    )


def _key(name: str) -> str:
    """WebDataset's sample key: the folder, and the file's name up to its first dot."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}"


def _index(shard: Path, suffixes: frozenset[str]) -> tuple[list[_Member], dict[str, str], list[Skipped]]:
    """(pictures, labels by key, skipped) of one shard."""
    pictures: list[_Member] = []
    labels: dict[str, str] = {}
    skipped: list[Skipped] = []
    with shard.open("rb") as file:
        start = file.read(6)
        if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            raise UserError(
                f"{shard} is a compressed archive, whose members cannot be re-read; repack it as plain .tar"
            )
        file.seek(0)
        end = shard.stat().st_size
        for item in _members(shard, file, skipped):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            suffix = PurePosixPath(item.name).suffix.lower()
            if suffix in suffixes and item.offset + item.size > end:
                skipped.append(Skipped(item.name, "archive ends within this member"))
            elif suffix in suffixes and item.size > MAX_FILE_BYTES:
                skipped.append(
                    Skipped(item.name, f"member of {item.size / 2**20:.0f} MB; limit is {MAX_FILE_BYTES // 2**20} MB")
                )
            elif suffix in suffixes:
                pictures.append(item)
            elif suffix in (".cls", ".json") and item.size <= _MAX_LABEL:
                back = file.tell()
                file.seek(item.offset)
                value = _label(suffix, file.read(item.size))
                file.seek(back)
                if value is not None:
                    labels[_key(item.name)] = value
    return pictures, labels, skipped


def _members(shard: Path, file: BufferedReader, skipped: list[Skipped]) -> Iterator[_Member | Skipped]:
    """The usable members of one tar in order, and its unusable ones as Skipped."""
    count = 0
    try:
        with tarfile.open(fileobj=_Capped(file), mode="r:", errorlevel=2) as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                count += 1
                if count > MAX_MEMBERS:
                    raise UserError(f"{shard} has more than {MAX_MEMBERS} members; split it into smaller shards")
                tar.members.clear()  # tarfile would keep every header
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    yield Skipped(member.name, _TYPES.get(member.type, "not a regular file"))
                elif member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name).parts:
                    yield Skipped(member.name, "unsafe member name")
                else:
                    yield _Member(member.name.removeprefix("./"), member.offset_data, member.size)
            # tarfile takes a damaged or half header for the end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                yield Skipped("", f"damaged or cut off after {count} members")
            elif shard.stat().st_size - tar.offset > _MAX_PADDING:
                yield Skipped("", f"what follows the end mark, after {count} members, was not read")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if not count:
            raise UserError(f"{shard} is no tar archive ({error}); write it again with tar or WebDataset") from None
        yield Skipped("", f"damaged after {count} members ({error})")


_TYPES = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}


def _label(suffix: str, data: bytes) -> str | None:
    """A label from key.cls (its text) or key.json (its "label", "cls", "class" or "category"; or a bare value)."""
    try:
        text = data.decode().strip()
        value = json.loads(text) if suffix == ".json" else text
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in _LABEL_KEYS if key in value), None)
    return shown(str(value)) if isinstance(value, str | int) and str(value) else None
