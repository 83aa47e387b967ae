"""SimCLR and MAE on one CUDA card: speed, share of the card's peak, memory, and a run that is killed and resumed.

    python benchmarks/gpu.py [--json]

Steps in bfloat16. Ours: the training loop's whole step, from uint8 pictures in host memory (where they lie as the
prepared cache holds them) through the loader's threads, the copy to the card and the augmentation to updated weights.
Peer: lightly's modules around the same timm network, as its examples put them together (one pass per view, plain AdamW),
on views that lie ready on the card: its augmentation runs on CPUs, picture by picture (benchmarks/augment.py), and costs
nothing here. Its MAE decoder has our decoder's width and depth. Compiled: the same step with train.compile (the encoder);
the peer's is not compiled.

Share of the peak: FLOPs of matrix products and convolutions (torch.utils.flop_counter; ours without augmentation) per
second, over the rate of a large bfloat16 matrix product measured here, and over the card's published dense figure where
it is known. Augmentation and loss are timed alone, by CUDA events, and given in % of our step. A batch that does not fit
is halved. Rows in which the peer has no figure (not installed, or out of memory) say null.

Kill and resume: `selftaught pretrain` on PNG pictures, twice to the end, and once killed with SIGKILL on the way and
started again. 1: the encoders are equal bit for bit. Two whole runs may differ on a card, where some kernels of cuDNN
add in no fixed order; the resumed run then can be no more alike than those two are.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import selftaught.encoders  # it goes before lightly, which imports torchvision

# isort: split
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode

from _resume import resume_rows
from _timing import Row, main
from selftaught.batch import Batch
from selftaught.encoders import EncoderConfig
from selftaught.losses.contrastive import nt_xent
from selftaught.modality.image import ImageModality
from selftaught.pretext.mae import MAE
from selftaught.pretext.simclr import SimCLR
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.order import LOADERS, Order, batches

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Dense bfloat16 TFLOP/s with float32 sums, from the makers' data sheets; the longest name that fits counts.
NOMINAL = {
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "B200": 2250.0,
    "GH200": 989.4,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H200": 989.4,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
}


@dataclass(frozen=True)
class Work:
    """One training step to measure."""

    method: str
    label: str
    encoder: str
    size: int
    batch: int
    compiled: bool = False


@dataclass(frozen=True)
class Plan:
    """What is measured, on what, how often."""

    name: Literal["cpu", "cuda"]
    works: tuple[Work, ...]
    compiled: tuple[Work, ...]
    pairs: int
    matrix: int
    warm: int
    blocks: int
    steps: int
    run_steps: int

    @property
    def device(self) -> torch.device:
        return torch.device(self.name, 0)


def full_plan() -> Plan:
    works = (
        Work("SimCLR", "ResNet-50", "resnet50", 224, 128),
        Work("SimCLR", "ViT-S/16", "vit_small_patch16_224", 224, 256),
        Work("SimCLR", "ResNet-18", "resnet18", 32, 1024),
        Work("MAE", "ViT-S/16", "vit_small_patch16_224", 224, 512),
    )
    compiled = tuple(replace(work, compiled=True) for work in works if work.size == 224)
    return Plan("cuda", works, compiled, 32768, 8192, warm=5, blocks=3, steps=8, run_steps=400)


def tiny_plan() -> Plan:
    """Every path of the program but the compiled one in seconds on a CPU; its figures mean nothing."""
    works = (Work("SimCLR", "tiny ResNet", "resnet10_x0.25", 32, 8), Work("MAE", "tiny ViT", "vit_micro", 32, 8))
    return Plan("cpu", works, (), 64, 64, warm=1, blocks=1, steps=1, run_steps=20)


def lightly() -> bool:
    """Whether the peer is installed."""
    try:
        import lightly  # noqa: F401
    except ImportError:
        return False
    return True


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def events_ms(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Milliseconds of one call, from CUDA events around `repeats` calls; on a CPU from the clock."""
    function()
    wait(device)
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - start) / repeats * 1e3
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(repeats):
        function()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / repeats


def fresh(device: torch.device) -> None:
    """Give back what the card's allocator holds, and begin to measure the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Largest memory of tensors since `fresh`, in GB."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


@dataclass(frozen=True)
class Figures:
    """A step's seconds, its FLOPs and its peak memory in GB; None where there is no such figure."""

    seconds: float | None
    flops: float
    memory: float | None


def measure(step: Callable[[], object], plan: Plan, extra: Callable[[], object] | None = None) -> Figures:
    """The figures of `step`; FLOPs are without those of `extra`."""
    seconds, memory = timed(step, plan)
    return Figures(seconds, count(step) - (count(extra) if extra else 0), memory)


def timed(step: Callable[[], object], plan: Plan) -> tuple[float, float | None]:
    """Median seconds over blocks of steps, and the peak of memory."""
    for _ in range(plan.warm):
        step()
    times = []
    for _ in range(plan.blocks):
        wait(plan.device)
        start = time.perf_counter()
        for _ in range(plan.steps):
            step()
        wait(plan.device)
        times.append((time.perf_counter() - start) / plan.steps)
    return statistics.median(times), peak_gb(plan.device)


def count(function: Callable[[], object]) -> int:
    """FLOPs of matrix products, convolutions and attention in one call, backward included."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class Ours:
    """The step of selftaught's training loop, and its parts alone."""

    def __init__(self, work: Work, plan: Plan) -> None:
        self.work, self.device = work, plan.device
        modality = ImageModality(work.size, 3, MEAN, STD)
        encoder = selftaught.encoders.build(EncoderConfig(work.encoder, work.size))
        task = (
            SimCLR(encoder, modality, SimCLR.Config())
            if work.method == "SimCLR"
            else MAE(encoder, modality, MAE.Config())
        )
        config = TrainConfig(
            10**6, work.batch, precision="bf16", device=plan.name, compile=work.compiled, workers=LOADERS[plan.name]
        )
        self.task, self.trainer = task, Trainer(task, config, Ranks())
        side = work.size if work.size <= 64 else work.size * 115 // 100  # as the prepared cache stores them
        shape = (work.batch, 3, side, side)
        self.pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        order = Order(work.batch, work.batch, config.seed)
        self.supply = batches(self.fetch, order, 0, config.steps, config.workers, self.device)

    def fetch(self, positions: np.ndarray, step: int) -> Batch:
        """A batch as a source gives it: rows of an array, in the order of `positions`."""
        n = self.work.batch
        size = torch.tensor(self.pixels.shape[2:]).repeat(n, 1)
        index = torch.from_numpy(positions)
        return Batch({"pixels": self.pixels[index], "size": size}, index, 0, step)

    def batch(self) -> Batch:
        return self.fetch(np.arange(self.work.batch), 0).to(self.device)

    def step(self) -> None:
        self.trainer.train_step(next(self.supply))

    def augmentation(self, batch: Batch) -> Callable[[], object]:
        """The views of a step, from pictures on the card."""
        streams = (1, 2) if self.work.method == "SimCLR" else (1,)

        def views() -> list[Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16):
                view = self.task.view if isinstance(self.task, MAE) else self.task.views[0]

                return [self.task.modality.view(batch, view, stream) for stream in streams]

        return views

    def loss(self) -> Callable[[], object] | None:
        """Forward and backward of SimCLR's loss alone."""
        if not isinstance(self.task, SimCLR):
            return None
        z = [
            torch.randn(self.work.batch, self.task.config.out, device=self.device, requires_grad=True) for _ in range(2)
        ]
        return lambda: nt_xent(z[0], z[1], self.task.config.temperature).loss.backward()


def peer_figures(ours: Ours, views: list[Tensor], plan: Plan) -> Figures | None:
    """The same step from lightly's modules; None where it does not fit."""
    from _peer import PeerMAE, PeerSimCLR  # only where lightly is installed

    work, task = ours.work, ours.task
    if isinstance(task, SimCLR):
        encoder = selftaught.encoders.build(EncoderConfig(work.encoder, work.size))
        model: nn.Module = PeerSimCLR(encoder.model, encoder.width)  # type: ignore[arg-type]
    else:
        decoder: Any = task.decoder
        depth, heads = len(decoder.blocks) - 1, decoder.blocks[0].attn.num_heads
        model = PeerMAE(work.encoder, work.size, decoder.embed.out_features, depth, heads)
    model.to(plan.device)
    optimizer = AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3, weight_decay=0.05)

    def step() -> None:
        with torch.autocast(plan.device.type, torch.bfloat16):
            loss = model(views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    fresh(plan.device)
    try:
        return measure(step, plan)
    except torch.OutOfMemoryError:
        return None


def ours_figures(work: Work, plan: Plan) -> tuple[Ours, Figures]:
    """Our step at the largest batch, from that of `work` in halves, that fits."""
    while True:
        fresh(plan.device)
        try:
            ours = Ours(work, plan)
            return ours, measure(ours.step, plan, ours.augmentation(ours.batch()))
        except torch.OutOfMemoryError:
            if work.batch < 16:
                raise
            work = Work(work.method, work.label, work.encoder, work.size, work.batch // 2)


def over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def step_rows(work: Work, plan: Plan, peaks: dict[str, float]) -> Iterator[Row]:
    ours, mine = ours_figures(work, plan)
    n, augmentation = ours.work.batch, ours.augmentation(ours.batch())
    views = [x.contiguous() for x in augmentation()]  # type: ignore[attr-defined]
    parts = {"augmentation": events_ms(augmentation, plan.device, 10)}
    if loss := ours.loss():
        parts["loss"] = events_ms(loss, plan.device, 10)
    ours.trainer.optimizer.zero_grad(set_to_none=True)
    ours.trainer.task.cpu()  # the card belongs to the peer now
    ours.trainer.optimizer.state.clear()
    peer = peer_figures(ours, views, plan) if lightly() else None
    name = f"{work.method} {work.label} {work.size} px"
    theirs = peer or Figures(None, 0, None)
    rates = over(n, mine.seconds), over(n, theirs.seconds)
    yield Row(name=f"{name}, batch {n}", unit="pictures/s", ours=rates[0], peer=rates[1], ratio=over(*rates))
    for peak, tera in peaks.items():
        mine_share, peer_share = (over(f.flops / tera / 1e10, f.seconds) for f in (mine, theirs))
        ratio = over(mine_share, peer_share)
        yield Row(name=f"{name}: share of {peak} peak", unit="%", ours=mine_share, peer=peer_share, ratio=ratio)
    ratio = over(theirs.memory, mine.memory)
    yield Row(name=f"{name}: peak memory", unit="GB", ours=mine.memory, peer=theirs.memory, ratio=ratio)
    for part, ms in parts.items():
        share = over(ms / 10, mine.seconds)
        yield Row(name=f"{name}: {part}", unit="% of our step", ours=share, peer=None, ratio=None)


def compiled_row(work: Work, plan: Plan) -> Row:
    """Our compiled step alone; a compiler's kernels are not all counted, so there is no share of the peak."""
    fresh(plan.device)
    seconds, _ = timed(Ours(work, plan).step, plan)
    name = f"{work.method} {work.label} {work.size} px, batch {work.batch}, compiled"
    return Row(name=name, unit="pictures/s", ours=work.batch / seconds, peer=None, ratio=None)


def peak_rows(plan: Plan) -> tuple[dict[str, float], list[Row]]:
    """Peaks in TFLOP/s: of a large bfloat16 matrix product here, and the published one."""
    a, b = (torch.randn(plan.matrix, plan.matrix, device=plan.device, dtype=torch.bfloat16) for _ in range(2))
    peaks = {"measured": 2 * plan.matrix**3 / min(events_ms(lambda: a @ b, plan.device, 10) for _ in range(5)) / 1e9}
    if plan.device.type == "cuda":
        card = torch.cuda.get_device_name(plan.device)
        fitting = [name for name in NOMINAL if name in card]
        if fitting:
            peaks["published"] = NOMINAL[max(fitting, key=len)]
    rows = [Row(name=f"{k} matrix peak, bf16", unit="TFLOP/s", ours=v, peer=None, ratio=None) for k, v in peaks.items()]
    return peaks, rows


def loss_rows(plan: Plan) -> Iterator[Row]:
    """NT-Xent alone, forward and backward, float32."""
    losses: dict[str, Callable[..., Tensor]] = {"ours": lambda a, b: nt_xent(a, b, 0.1).loss}
    if lightly():
        from lightly.loss import NTXentLoss

        losses["peer"] = NTXentLoss(0.1)
    ms: dict[str, float | None] = {"ours": None, "peer": None}
    gb: dict[str, float | None] = {"ours": None, "peer": None}
    for side, loss in losses.items():
        z = [torch.randn(plan.pairs, 128, device=plan.device, requires_grad=True) for _ in range(2)]
        fresh(plan.device)
        try:
            ms[side] = events_ms(lambda loss=loss, z=z: loss(*z).backward(), plan.device, 3)  # type: ignore[misc]
            gb[side] = peak_gb(plan.device)
        except torch.OutOfMemoryError:
            print(f"{side}: NT-Xent of {plan.pairs} pairs does not fit", file=sys.stderr)
    name = f"NT-Xent N={plan.pairs}"
    for what, unit, x in (("time", "ms", ms), ("peak memory", "GB", gb)):
        yield Row(name=f"{name}: {what}", unit=unit, ours=x["ours"], peer=x["peer"], ratio=over(x["peer"], x["ours"]))


def rows(plan: Plan, resume: bool = True) -> Iterator[Row]:
    peaks, found = peak_rows(plan)
    yield from found
    for work in plan.works:
        yield from step_rows(work, plan, peaks)
    yield from loss_rows(plan)
    yield from (compiled_row(work, plan) for work in plan.compiled)
    if resume:
        yield from resume_rows(plan.name, plan.run_steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA card here")
        sys.exit(2)
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu is for --tiny alone")
    main(rows(tiny_plan() if args.tiny else full_plan()))
