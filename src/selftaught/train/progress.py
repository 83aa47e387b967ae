"""What a run says while it works: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from selftaught.errors import say


def clock(seconds: float) -> str:
    """Seconds as `45 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Meter:
    """Progress of `total` steps with the time left, measured over the steps of this session.

    On a terminal a bar is drawn; elsewhere a line is printed every ten seconds at most, and one at the end.
    """

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False, every: float = 10.0) -> None:
        self.what, self.total, self.first, self.quiet, self.every = what, total, done, quiet, every
        self.start = self.said = time.monotonic()
        self.bar: Progress | None = None
        if not quiet and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", style="cyan"),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self.task = self.bar.add_task(what, total=total, completed=done, left="", note="")

    def __enter__(self) -> "Meter":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def left(self, done: int) -> float | None:
        """Seconds left at the pace of this session; None before a second step."""
        worked = done - self.first
        if worked < 1:
            return None
        return (time.monotonic() - self.start) / worked * (self.total - done)

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` steps are done."""
        seconds = self.left(done)
        left = f"{clock(seconds)} left" if seconds is not None and done < self.total else ""
        if self.bar:
            self.bar.update(self.task, completed=done, left=left, note=note)
            return
        now = time.monotonic()
        if not self.quiet and (now - self.said >= self.every or done == self.total):
            self.said = now
            parts = [f"{self.what} {done}/{self.total}", left, note]
            say("  ".join(p for p in parts if p))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar:
            self.bar.console.print(line, highlight=False, markup=False)
        elif not self.quiet:
            say(line)
