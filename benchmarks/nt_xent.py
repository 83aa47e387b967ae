"""NT-Xent beside lightly's: time, memory beyond the inputs, and error of the gradient.

    python benchmarks/nt_xent.py [--json]

Time: forward and backward, N = 4096 pairs of width 128, 2 threads. Memory: growth of the peak resident size of a fresh
process (VmHWM, reset once the inputs and a warm-up at N = 64 are in) during one forward and backward; lightly is not
run at N = 16384, where it takes 18 GB (measured once). Gradient error: relative Frobenius distance to the formula in
float64, N = 256, views that half agree. ratio is above 1 where ours is better.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from torch import Tensor
from torch.nn import functional as F

from _timing import compare

Loss = Callable[[Tensor, Tensor], Tensor]
WIDTH, TEMPERATURE = 128, 0.1


def make(name: str, temperature: float = TEMPERATURE) -> Loss:
    """The loss of "ours" or "lightly"; each is imported only where it runs, so that memory counts one of them."""
    if name == "ours":
        from selftaught.losses.contrastive import nt_xent

        return lambda a, b: nt_xent(a, b, temperature).loss
    importlib.import_module("selftaught.encoders._torchvision")  # lightly imports torchvision
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature)


def naive(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Chen et al. 2020, eq. 1, in float64."""
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]).double(), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, (torch.arange(2 * n) + n) % (2 * n))


def views(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(n, WIDTH, generator=generator)
    return [(shared + torch.randn(n, WIDTH, generator=generator)).requires_grad_() for _ in range(2)]


def step(loss: Loss, z: list[Tensor]) -> None:
    for x in z:
        x.grad = None
    loss(*z).backward()


def peak_mb() -> float:
    """Peak resident size of this process in MB since the last reset."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measure_memory(name: str, n: int) -> float:
    """Run in a fresh process: extra peak MB of one step."""
    loss = make(name)
    step(loss, views(64))
    z = views(n)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present resident size
    before = peak_mb()
    step(loss, z)
    return peak_mb() - before


def extra_mb(name: str, n: int) -> float:
    """measure_memory in a fresh process."""
    command = [sys.executable, __file__, "--memory", name, str(n)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def gradient_error(name: str, temperature: float) -> float:
    z = views(256)
    got = torch.autograd.grad(make(name, temperature)(*z), z)
    expected = torch.autograd.grad(naive(*z, temperature), z)
    return ((torch.cat(got) - torch.cat(expected)).norm() / torch.cat(expected).norm()).item()


def lower_is_better(name: str, unit: str, ours: float, peer: float | None) -> dict[str, object]:
    return {"name": name, "unit": unit, "ours": ours, "peer": peer, "ratio": None if peer is None else peer / ours}


def rows() -> Iterator[Mapping[str, object]]:
    z, ours, peer = views(4096), make("ours"), make("lightly")
    yield compare("nt_xent N=4096 d=128", lambda: step(ours, z), lambda: step(peer, z), unit="steps per s")
    yield lower_is_better("nt_xent N=4096, extra memory", "MB", extra_mb("ours", 4096), extra_mb("lightly", 4096))
    yield lower_is_better("nt_xent N=16384, extra memory", "MB", extra_mb("ours", 16384), None)
    for t in (0.5, 0.1, 0.05, 0.01):
        errors = gradient_error("ours", t), gradient_error("lightly", t)
        yield lower_is_better(f"nt_xent gradient, temperature {t}", "rel. error", *errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.memory:
        print(measure_memory(args.memory[0], int(args.memory[1])))
        return
    if args.json:
        print(json.dumps({"rows": list(rows())}))
        return
    for row in rows():
        figures = ("-" if row[k] is None else f"{row[k]:.3g}" for k in ("ours", "peer", "ratio"))
        print(f"{row['name']:36}{row['unit']:14}" + "ours {}, lightly {}, ratio {}".format(*figures), flush=True)


if __name__ == "__main__":
    main()
