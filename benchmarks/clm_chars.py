"""Characters of Shakespeare, with nanoGPT's configuration for a CPU: loss on its validation part, and iterations a second.

    python benchmarks/clm_chars.py --data tinyshakespeare.txt [--steps 2000] [--seeds 0] [--repeats 15] [--json]

4 layers, 4 heads, 128 wide, windows of 64 characters, batch 12, 2000 iterations, no dropout, AdamW with rate 1e-3 (100
iterations of warm-up, cosine to 1e-4), betas .9 and .99, weight decay .1, gradients clipped at 1. The first 90 % of the text
teach. Ours are the verbs a user types: pretrain on the first part (of which 2 % are held out for the monitor, as a run must
have), then evaluate on the last 10 %, every character of it but the first of each part of the file. Peer: the model and loop of
nanoGPT (karpathy/nanoGPT, model.py and train.py) in our words: windows at random places, attention by
scaled_dot_product_attention, no biases, tied embeddings, AdamW as torch has it for a CPU; its loss on consecutive windows. One
thing differs by choice: initial weights, which here are spread for a width of 128 (.049), in nanoGPT as in GPT-2 (.02). A row
of the first seed has those on our side as well, and says what the choice is worth.

Speed: blocks of whole iterations (windows drawn, forward, backward, update) of both sides alternate; medians. "fused" gives
the peer the fused AdamW that ours uses and nanoGPT uses on a GPU alone. A bf16 row, where the processor has it, runs ours as
it runs by default there, the peer in float32 as nanoGPT does.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does; it holds for both sides

import selftaught
import selftaught.encoders

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _timing import Row, compare, main
from selftaught.data.texts import from_list
from selftaught.data.tokens import tokenized
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.precision import fast_bf16
from selftaught.encoders.transformers_models import describe
from selftaught.modality.text import Tokenizer
from selftaught.modality.text.running import RunningText
from selftaught.pretext.clm import CLM
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig
from selftaught.train.order import Order
from selftaught.workflow.prepare import fetcher

WIDTH, DEPTH, HEADS, BLOCK, BATCH, RATE = 128, 4, 4, 64, 12, 1e-3
OPTIM = {"weight_decay": 0.1, "betas": (0.9, 0.99), "warmup": 100, "min_lr_ratio": 0.1, "clip_norm": 1.0}
_AT_ONCE = 20  # iterations of a timed block


class Block(nn.Module):
    """Pre-norm attention and MLP of GPT-2, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = (nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv, self.out = (nn.Linear(WIDTH, n * WIDTH, bias=False) for n in (3, 1))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, length, _ = x.shape
        parts = self.qkv(self.before(x)).split(WIDTH, dim=2)
        q, k, v = (part.view(b, length, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).contiguous().view(b, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.between(x))))


class PeerModel(nn.Module):
    """nanoGPT's model: ids [B, L] -> logits [B, L, V]."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.last = nn.LayerNorm(WIDTH, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * DEPTH) if deep else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.last(x), self.tokens.weight)


class Peer:
    """nanoGPT's training loop."""

    def __init__(self, text: str, seed: int, steps: int, fused: bool = False) -> None:
        torch.manual_seed(seed)
        characters = sorted(set(text))
        number = {c: i for i, c in enumerate(characters)}
        ids = torch.tensor([number[c] for c in text])
        self.train, self.held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
        self.model, self.steps, self.done = PeerModel(len(characters)), steps, 0
        groups = [[p for p in self.model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
        decayed = [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(decayed, lr=RATE, betas=(0.9, 0.99), **({"fused": True} if fused else {}))

    def loss(self, windows: Tensor) -> Tensor:
        """Of windows [B, L + 1]: each character from those before it."""
        logits = self.model(windows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    def step(self) -> None:
        """One iteration."""
        begin = torch.randint(len(self.train) - BLOCK, (BATCH,))
        windows = torch.stack([self.train[i : i + BLOCK + 1] for i in begin])
        ramp = self.done / 100
        share = min(1.0, max(0.0, (self.done - 100) / (self.steps - 100)))
        rate = RATE * ramp if ramp < 1 else RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.loss(windows).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    @torch.no_grad()
    def held_out(self) -> float:
        """The loss on the whole last part, in consecutive windows."""
        windows = self.held[: (len(self.held) - 1) // BLOCK * BLOCK + 1].unfold(0, BLOCK + 1, BLOCK)
        parts = [(self.loss(part).item(), len(part)) for part in windows.split(256)]
        return sum(x * n for x, n in parts) / len(windows)


class Ours:
    """Our training step on the same text, as pretrain runs it."""

    def __init__(self, text: str, precision: str) -> None:
        part = text[: int(0.9 * len(text))]
        source = from_list([part[i : i + 8192] for i in range(0, len(part), 8192)])
        every = np.arange(len(source))
        modality = RunningText(Tokenizer.train(source.texts(every), "char"), BLOCK)
        pieces, _ = tokenized(source, modality.tokenizer, modality.room, None, lambda done, total: None).windows(every)
        size = modality.tokenizer.vocabulary
        encoder = build(EncoderConfig("gpt2_nano", BLOCK, 0, options=describe("gpt2_nano"), vocabulary=size))
        optim = OptimConfig(lr=RATE, **OPTIM)  # type: ignore[arg-type]
        config = TrainConfig(steps=10**6, batch=BATCH, precision=precision, optim=optim)  # type: ignore[arg-type]
        self.trainer = Trainer(CLM(encoder, modality, CLM.Config()), config, Ranks())
        self.order, self.fetch = Order(len(pieces), BATCH, 0), fetcher(pieces, np.arange(len(pieces)), 0)

    def step(self) -> None:
        """One iteration."""
        step = self.trainer.step
        self.trainer.train_step(self.fetch(self.order.of_step(step), step))


def ours_held_out(text: str, seed: int, steps: int, *settings: str) -> float:
    """The loss that evaluate reports on the last part, after pretrain on the first."""
    with tempfile.TemporaryDirectory() as place:
        folder, cut = Path(place), int(0.9 * len(text))
        for name, part in (("train", text[:cut]), ("held", text[cut:])):
            (folder / f"{name}.txt").write_bytes(part.encode())
        more = [
            "text.tokenizer=char",
            "text.running=true",
            *(f"optim.{n}={v}" for n, v in OPTIM.items() if n != "betas"),
        ]
        options = {"steps": steps, "batch": BATCH, "lr": RATE, "size": BLOCK, "holdout": 0.02, "seed": seed}
        selftaught.pretrain(
            *(f"{folder}/train.txt?split=file",),
            **{"pretext": "clm", "encoder": "gpt2_nano", "out": folder / "run", "quiet": True, **options},
            set=[*more, *settings, "optim.betas=[0.9,0.99]"],
        )
        found = selftaught.evaluate(folder / "run", f"{folder}/held.txt?split=file", quiet=True)
        return next(r["value"] for r in found["rows"] if (r["metric"], r["features"]) == ("loss", "pretrained"))


def repeated(step):
    return lambda: [step() for _ in range(_AT_ONCE)]


def rows(args: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(args.threads)
    text = args.data.read_text("utf-8")
    for precision, fused in (("fp32", False), ("fp32", True), *([("bf16", False)] if fast_bf16() else [])):
        name = f"iterations, ours in {precision}" + (", peer with fused AdamW" if fused else "")
        sides = Ours(text, precision), Peer(text, 0, args.steps, fused)
        yield compare(name, *(repeated(side.step) for side in sides), "iterations/s", _AT_ONCE, repeats=args.repeats)
    for seed in args.seeds:
        mine = ours_held_out(text, seed, args.steps)
        peer = Peer(text, seed, args.steps)
        for _ in range(args.steps):
            peer.step()
        theirs = peer.held_out()
        yield Row(name=f"validation loss, seed {seed}", unit="nats/char", ours=mine, peer=theirs, ratio=theirs / mine)
        if seed == args.seeds[0]:
            mine = ours_held_out(text, seed, args.steps, "encoder.options.initializer_range=0.02")
            name = f"the same, our initial weights of .02, seed {seed}"
            yield Row(name=name, unit="nats/char", ours=mine, peer=theirs, ratio=theirs / mine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    main(rows(parser.parse_args()))
