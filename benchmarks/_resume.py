"""A run of `selftaught pretrain` that is killed with SIGKILL and started again, beside two whole ones."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from _timing import Row


def pretrain(data: Path, out: Path, device: str, steps: int, kill_at: int | None = None) -> bytes:
    """The encoder's weights file of a run; with kill_at killed once after that step and started again."""
    command = [sys.executable, "-m", "selftaught.cli", "pretrain", str(data), "--out", str(out), "--quiet"]
    command += ["--encoder", "resnet10_x0.25", "--size", "32", "--batch", "32", "--device", device]
    command += ["--steps", str(steps), "--set", f"train.save_every={steps // 10}"]
    if kill_at is not None:
        log = out / "log.jsonl"
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= kill_at):
            time.sleep(0.01)
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with code {process.returncode} before step {kill_at}, not by SIGKILL")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next((out / "encoder").glob("*.safetensors")).read_bytes()


def resume_rows(device: str, steps: int) -> Iterator[Row]:
    """Whether a second whole run, and one killed in its middle, have the weights of a first, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "pictures")
        data.mkdir()
        rng = np.random.default_rng(0)
        for i in range(256):
            pixels = np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
            Image.fromarray(pixels).save(data / f"{i:03}.png")
        os.environ["SELFTAUGHT_CACHE"] = str(Path(folder, "cache"))
        whole, again = (pretrain(data, Path(folder, name), device, steps) for name in ("whole", "again"))
        killed = pretrain(data, Path(folder, "killed"), device, steps, kill_at=steps // 2 + 3)
    for name, other in (("second whole run", again), ("killed and resumed run", killed)):
        yield Row(name=f"{name}: same bits", unit="1 = yes", ours=float(whole == other), peer=None, ratio=None)
