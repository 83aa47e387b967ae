"""The run folder: the recipe that owns it and logs that a resumed run continues without a seam."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selftaught import disk
from selftaught.errors import UserError
from selftaught.settings import differences, load_json

LOGS = ("log.jsonl", "health.jsonl", "alarms.jsonl", "retention.jsonl")


class RunFolder:
    """A folder `runs/NAME`. Only rank 0 writes; the other ranks hold one with `writes` false.

    LOGS hold nothing that depends on the clock, so that a resumed run writes the very bytes of an uninterrupted one;
    times are in timing.jsonl.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.mirror: Callable[[str, dict[str, Any]], None] | None = None  # told each line that `append` writes

    @property
    def checkpoints(self) -> Path:
        """Where the full states are."""
        return self.path / "checkpoints"

    @property
    def encoder(self) -> Path:
        """The bundle: what is left when training is over."""
        return self.path / "encoder"

    def claim(self, request: dict[str, Any]) -> bool:
        """Whether the folder holds a run of the very same request, to be resumed; False: it is free. Writes nothing.

        Raises UserError with the difference where it holds another run, or files that are no run at all. A request
        that never came to its first measure (it was refused, or killed) does not hold the folder.
        """
        file = self.path / "request.json"
        if file.is_file():
            lines = differences(load_json(file), request)
            if lines and not any((self.path / name).exists() for name in (*LOGS, "checkpoints", "encoder")):
                return False
            if lines:
                shown = "; ".join(lines[:6]) + (f"; and {len(lines) - 6} more" if len(lines) > 6 else "")
                raise UserError(f"'{self.path}' holds another run ({shown}); use another --out")
            return True
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"'{self.path}' is a file and no run folder; use another --out")
        if self.path.exists() and any(not p.name.startswith(f".{file.name}.") for p in self.path.iterdir()):
            raise UserError(f"'{self.path}' exists and is no run of selftaught; use another --out")
        return False

    def begin(self, request: dict[str, Any]) -> None:
        """Take the folder for a request that can be met: from now on it holds this run."""
        if self.writes:
            with disk.filling(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            file = self.path / "request.json"
            if file.is_file() and differences(load_json(file), request):
                (self.path / "recipe.json").unlink(missing_ok=True)  # of the request that never began
            disk.write_json(file, request)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes into the folder meanwhile, which is made where it is not there. UserError where another process
        is at it."""
        if not self.writes:
            yield
            return
        lock = self.path / ".request.json.lock"
        with disk.filling(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = lock.open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is at work in '{self.path}'; wait for it, or use another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add a line to a log. RunStopped on a full disk."""
        if not self.writes:
            return
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise disk.disk_error(error, self.path / name) or error from error
        if self.mirror is not None and name in LOGS:
            self.mirror(name, row)

    def log_sizes(self) -> dict[str, int]:
        """Bytes of each log, flushed to disk: what belongs to the checkpoint about to be written."""
        sizes = {}
        for name in LOGS:
            file = self.path / name
            if file.exists():
                disk.sync(file)
            sizes[name] = file.stat().st_size if file.exists() else 0
        return sizes

    def cut_logs(self, sizes: dict[str, int]) -> None:
        """Cut each log back to the given size: lines of steps that the checkpoint does not know."""
        for name in LOGS if self.writes else ():
            file = self.path / name
            if file.exists() and file.stat().st_size > sizes.get(name, 0):
                os.truncate(file, sizes.get(name, 0))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The lines of a log; a last line cut short by a crash is left out."""
        return self.rows_after(name, 0)[0]

    def rows_after(self, name: str, start: int) -> tuple[list[dict[str, Any]], int]:
        """The lines of a log from byte `start` on, and where they end: for those who follow a growing log."""
        file = self.path / name
        if not file.exists():
            return [], start
        rows = []
        with file.open("rb") as stream:
            stream.seek(start)
            for line in stream:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break
                start += len(line)
        return rows, start
