"""Packages as archives of data: members are read one by one, nothing is unpacked to disk, nothing is imported."""

import gzip
import io
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selftaught.errors import UserError

_MAX_MEMBER = 64 * 2**20


class Archive(ABC):
    """The regular files in an archive."""

    @abstractmethod
    def names(self) -> list[str]:
        """Their names, sorted."""

    @abstractmethod
    def _open(self, name: str) -> io.BufferedIOBase:
        """One of them; KeyError where there is no such file."""

    def read(self, name: str) -> bytes:
        """One member's bytes. Raises UserError where there is none of that name, or more than 64 MB of it."""
        try:
            with self._open(name) as file:
                return _within(file.read(_MAX_MEMBER + 1), name)
        except KeyError:
            raise UserError(f"the archive holds no '{name}'; this data set cannot be read") from None

    def gunzip(self, name: str) -> bytes:
        """The bytes that a member compressed by gzip unpacks to, at most 64 MB."""
        with gzip.open(io.BytesIO(self.read(name))) as file:
            return _within(file.read(_MAX_MEMBER + 1), name)


class _Zip(Archive):
    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file

    def names(self) -> list[str]:
        return sorted(x.filename for x in self.file.infolist() if not x.is_dir())

    def _open(self, name: str) -> io.BufferedIOBase:
        return self.file.open(name)  # type: ignore[return-value]  # typed as IO[bytes], and it is a ZipExtFile


class _Tar(Archive):
    def __init__(self, file: tarfile.TarFile) -> None:
        self.members = {x.name: x for x in file.getmembers() if x.isfile()}  # no links, no devices
        self.file = file

    def names(self) -> list[str]:
        return sorted(self.members)

    def _open(self, name: str) -> io.BufferedIOBase:
        found = self.file.extractfile(self.members[name])
        assert found is not None, name  # it is a regular file
        return found  # type: ignore[return-value]


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """A wheel (.whl, .zip) or a source archive (.tar.gz), to read from."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path, "r:gz") as tar:
            yield _Tar(tar)
    else:
        with zipfile.ZipFile(path) as archive:
            yield _Zip(archive)


def _within(data: bytes, name: str) -> bytes:
    if len(data) > _MAX_MEMBER:
        raise UserError(f"{name} unpacks to more than {_MAX_MEMBER // 2**20} MB; it was not used")
    return data
