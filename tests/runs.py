"""Tiny data, and whole runs of the command line in processes of their own, for the tests of runs.

A forkserver imports torch once; each run is then a fork of it, with the signals, exit code and files of a real process.
"""

import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image, ImageDraw

ENCODER = ("--encoder", "resnet10_x0.25")
_PRELOAD = [
    *("selftaught.cli", "selftaught.pretext.simclr", "tyro.extras", "sklearn.manifold"),
    *(f"selftaught.workflow.{name}" for name in ("pretrain", "evaluate", "finetune", "embed")),
    *("torch.distributed", "torch.nn.parallel", "tests.contracts.conftest"),
]
_WAIT = 240.0
_NUMBERS = itertools.count()


class Result(NamedTuple):
    """How a run ended: exit code (-N: killed by signal N), standard output and standard error."""

    code: int
    out: str
    err: str


@functools.cache
def _room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="selftaught-tests-")


def environment() -> dict[str, str]:
    """One thread, and a cache that all tests of this session share."""
    return {"OMP_NUM_THREADS": "1", "SELFTAUGHT_CACHE": str(Path(_room().name) / "cache"), "COLUMNS": "80"}


def picture(seed: int, kind: int, side: int = 16) -> Image.Image:
    """A rectangle, an ellipse, a line or an arc in random colours; no two seeds give the same picture."""
    g = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(g.integers(0, 80, 3).tolist()))
    x, y = g.integers(0, side // 3, 2).tolist()
    box, colour = (x, y, x + side // 2, y + side // 2), tuple(g.integers(120, 255, 3).tolist())
    draw = ImageDraw.Draw(image)
    match kind:
        case 0:
            draw.rectangle(box, fill=colour)
        case 1:
            draw.ellipse(box, fill=colour)
        case 2:
            draw.line(box, fill=colour, width=2)
        case _:
            draw.arc(box, 0, 300, fill=colour, width=2)
    return image


def write_pictures(root: Path, n: int, side: int = 16, first: int = 0) -> Path:
    """n pictures in four class folders."""
    for i in range(n):
        folder = root / ("rectangle", "ellipse", "line", "arc")[i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        picture(first + i, i % 4, side).save(folder / f"{i:04d}.png")
    return root


@functools.cache
def pictures(n: int = 320) -> Path:
    """A folder of n pictures that no test may change."""
    return write_pictures(Path(_room().name) / f"pictures-{n}", n)


def folder(name: str) -> Path:
    """A path for a run that several tests read."""
    return Path(_room().name) / name


def run_verb(arguments: list[str], cwd: str, env: dict[str, str], output: str, kill: tuple[str, int] | None) -> None:
    """In the new process: run the command line, its output in files; see `start` for `kill`."""
    # A shell without job control starts what it puts into the background with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.update(env)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        stream.flush()
        os.dup2(os.open(f"{output}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if kill is not None:
        _kill_at_sync(*kill)
    from selftaught.cli import main

    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _kill_at_sync(name: str, count: int) -> None:
    """`kill -9` for this process when it is about to sync the `count`-th file or folder whose path contains `name`."""
    sync, left = os.fsync, count

    def counted(descriptor: int) -> None:
        nonlocal left
        left -= name in str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = counted  # type: ignore[assignment]


class Running:
    """A run under way."""

    def __init__(self, process: BaseProcess, output: str) -> None:
        self.process, self.output = process, output

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def said(self) -> str:
        """Standard error so far."""
        file = Path(f"{self.output}.2")
        return file.read_text() if file.exists() else ""

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true; fails if the run ends before."""
        while not condition():
            assert self.process.is_alive(), self.end()
            time.sleep(0.002)

    def end(self) -> Result:
        """Wait for the end."""
        self.process.join(_WAIT)
        assert self.process.exitcode is not None, f"still running: {self.said}"
        return Result(self.process.exitcode, Path(f"{self.output}.1").read_text(), self.said)


@functools.cache
def _server() -> "multiprocessing.context.ForkServerContext":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with mock.patch.dict(os.environ, environment()):  # OpenMP reads its number of threads when it is loaded
        forkserver.ensure_running()
    return context


def start(*arguments: object, cwd: Path | None = None, kill: tuple[str, int] | None = None, **env: str) -> Running:
    """Start a verb. kill: (name, count): it is killed when about to sync the count-th path that contains name."""
    room = cwd or Path(_room().name)
    output = f"{_room().name}/output-{next(_NUMBERS)}"
    words = [str(a) for a in arguments]
    process = _server().Process(target=run_verb, args=(words, str(room), {**environment(), **env}, output, kill))
    process.start()
    return Running(process, output)


def run(*arguments: object, cwd: Path | None = None, kill: tuple[str, int] | None = None, **env: str) -> Result:
    """Run a verb to its end."""
    return start(*arguments, cwd=cwd, kill=kill, **env).end()


def run_rank(function: Callable[..., None], arguments: tuple[Any, ...], where: tuple[int, int, int], said: str) -> None:
    """In the new process: join the others, run, and leave what went wrong in a file."""
    rank, world, port = where
    os.environ |= {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    from selftaught.train import distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    try:
        function(rank, *arguments)
    except BaseException:
        Path(said).write_text(traceback.format_exc())
        raise
    finally:
        distributed.leave()


def on_ranks(function: Callable[..., None], *arguments: object, world: int = 2) -> None:
    """function(rank, *arguments) on ranks that compute together over gloo; fails where one does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = [f"{_room().name}/rank-{next(_NUMBERS)}" for _ in range(world)]
    processes = [
        _server().Process(target=run_rank, args=(function, arguments, (rank, world, port), said[rank]))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_WAIT)
    failed = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert failed == [0] * world, "\n".join(Path(f).read_text() for f in said if Path(f).exists()) or failed


def run_lines(lines: list[list[str]], cwd: str, env: dict[str, str], output: str) -> None:
    """In the new process: run command lines one after the other; their results in a file, as JSON."""
    os.chdir(cwd)
    os.environ.update(env)
    from selftaught.cli import main

    results = []
    for words in lines:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except Exception:
                code = 1
                traceback.print_exc()
        results.append([code, out.getvalue(), err.getvalue()])
    Path(output).write_text(json.dumps(results))


def run_many(lines: Sequence[Sequence[object]], cwd: Path) -> list[Result]:
    """Run command lines that do little, all in one process."""
    output = f"{_room().name}/output-{next(_NUMBERS)}"
    words = [[str(w) for w in line] for line in lines]
    process = _server().Process(target=run_lines, args=(words, str(cwd), environment(), output))
    process.start()
    process.join(_WAIT)
    return [Result(*found) for found in json.loads(Path(output).read_text())]


def succeed(*arguments: object, **options: object) -> Result:
    """Run a verb that must succeed."""
    result = run(*arguments, **options)  # type: ignore[arg-type]
    assert result.code == 0, result
    return result


def one_line(result: Result, code: int) -> str:
    """The one line that a refused or stopped run says, without `selftaught: `; anything more than that fails."""
    assert result.code == code, result
    lines = [line for line in result.err.splitlines() if line.startswith("selftaught: ")]
    assert len(lines) == 1, result
    assert result.err.rstrip().endswith(lines[0]), result
    assert "Traceback" not in result.err + result.out
    return lines[0].removeprefix("selftaught: ")


def files(root: Path, *patterns: str) -> dict[str, bytes]:
    """The bytes of a folder's files, by name."""
    return {str(p.relative_to(root)): p.read_bytes() for g in patterns for p in sorted(root.glob(g)) if p.is_file()}
