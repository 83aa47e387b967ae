"""A training step on histories of 50 events, and what is learned in the same time, beside RecBole 1.2.1's own SASRec.

    python benchmarks/sequence_step.py [--repeats 7] [--threads 2] [--data LOG --minutes 2] [--json]

Both: two layers 64 wide, two heads, feed-forward networks 64 wide, the softmax over 3 646 items, Adam, float32. Ours learns
from all events of a history at once; RecBole makes of each event a history of its own that ends before it (2 048 in a batch, its
default). First row: events learned a second, each side in its own way. Second: the same 2 048 histories and targets
on both sides, one target each. Blocks of steps alternate; medians.

With --data also nDCG@10 (leave-one-out, whole catalogue, seen items filtered, the same ranking code) after the same minutes
of training, data at rest in memory: RecBole by its defaults (feed-forward 256 wide, dropout .5, lr 1e-3), ours by its own and
with what is given by --set and --lr.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

import numpy as np
import torch
from recbole.model.sequential_recommender.sasrec import SASRec
from torch import Tensor

import selftaught
from _timing import Row, compare, main
from selftaught import bundle
from selftaught.batch import Batch
from selftaught.data import open_data
from selftaught.data.ragged import within
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.sequences import SIZES
from selftaught.modality.event import EventModality
from selftaught.pretext.next_item import NextItem
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig
from selftaught.workflow.ranking import Log, encoder_scores, ranked

torch.autograd.set_detect_anomaly(False)  # one of RecBole's modules turns it on: twice the time on both sides

ITEMS, LENGTH, ROWS, PREFIXES = 3646, 50, 256, 2048


class Sized:
    """What RecBole's models ask of a data set."""

    def __init__(self, items: int) -> None:
        self.items = items

    def num(self, field: str) -> int:
        """Ids of a field, 0 for no item included."""
        return self.items + 1


class Peer:
    """RecBole's SASRec with its defaults, but for what is given, in a plain loop on tensors."""

    def __init__(self, items: int, inner: int, dropout: float) -> None:
        config = {
            "USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_", "device": "cpu",
            "ITEM_LIST_LENGTH_FIELD": "length", "MAX_ITEM_LIST_LENGTH": LENGTH, "n_layers": 2, "n_heads": 2,
            "hidden_size": 64, "inner_size": inner, "hidden_dropout_prob": dropout, "attn_dropout_prob": dropout,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02, "loss_type": "CE",
        }  # fmt: skip
        torch.manual_seed(0)
        self.model = SASRec(config, Sized(items))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)

    def step(self, items: Tensor, length: Tensor, target: Tensor) -> None:
        """One step on histories [B, 50] of so many events, and what follows each."""
        self.optimizer.zero_grad()
        self.model.calculate_loss({"item_list": items, "length": length, "item": target}).backward()
        self.optimizer.step()


class Ours:
    """Our training step."""

    def __init__(self, rows: int) -> None:
        modality = EventModality([str(i) for i in range(ITEMS)], LENGTH, {})
        options = {**SIZES["sasrec_small"], "dropout": 0.5}
        torch.manual_seed(0)
        encoder = build(EncoderConfig("sasrec_small", LENGTH, 0, options=options, vocabulary=modality.vocabulary))
        task = NextItem(encoder, modality, NextItem.Config())
        optim = OptimConfig(lr=1e-3, weight_decay=0.0, clip_norm=None, warmup=0.0)
        self.trainer = Trainer(task, TrainConfig(steps=10**6, batch=rows, precision="fp32", optim=optim), Ranks())

    def step(self, inputs: dict[str, Tensor]) -> None:
        """One step on a batch's inputs."""
        self.trainer.train_step(Batch(inputs, torch.arange(len(inputs["length"])), seed=0, step=0))


def speed(repeats: int) -> Iterator[Row]:
    """Rows of events learned a second."""
    g = torch.Generator().manual_seed(0)
    items = torch.randint(1, ITEMS + 1, (PREFIXES, LENGTH + 1), generator=g)
    whole = {"items": items[:ROWS], "length": torch.full((ROWS,), LENGTH + 1)}
    length = torch.randint(1, LENGTH + 1, (PREFIXES,), generator=g)  # as prefixes of one history are
    prefixes = items[:, :LENGTH].masked_fill(torch.arange(LENGTH) >= length[:, None], 0)
    target = items.gather(1, length[:, None])[:, 0]
    ours, last, peer = Ours(ROWS), Ours(PREFIXES), Peer(ITEMS, inner=64, dropout=0.5)
    row = compare(
        "all events of 50", lambda: ours.step(whole), lambda: peer.step(prefixes, length, target), repeats=repeats
    )
    mine, theirs = row["ours"] * ROWS * LENGTH, row["peer"] * PREFIXES
    yield Row(name=row["name"], unit="events/s", ours=mine, peer=theirs, ratio=mine / theirs)
    at = torch.arange(LENGTH + 1)
    same = {
        "items": items.masked_fill(at > length[:, None], 0), "length": length + 1, "scored": at == length[:, None],
    }  # fmt: skip
    yield compare(
        "the same histories, one target each", lambda: last.step(same), lambda: peer.step(prefixes, length, target),
        "events/s", PREFIXES, repeats,
    )  # fmt: skip


def prefixes_of(log: Log) -> tuple[Tensor, Tensor, Tensor]:
    """Of what teaches, each event but a user's first as a target behind at most 50 events before it: items, length, target."""
    begin, end = log.train.T
    counts = np.maximum(0, end - begin - 1)
    first = np.repeat(begin, counts)
    target = first + 1 + within(counts)
    length = np.minimum(LENGTH, target - first)
    at = (target - length)[:, None] + np.arange(LENGTH)
    inside = np.arange(LENGTH) < length[:, None]
    items = np.where(inside, log.code[np.where(inside, at, 0)] + 1, 0)
    return torch.from_numpy(items), torch.from_numpy(length), torch.from_numpy(log.code[target] + 1)


def trained_peer(log: Log, seconds: float) -> Peer:
    """RecBole's SASRec after so many seconds of steps on shuffled batches of 2 048."""
    peer, (items, length, target) = Peer(log.items, inner=256, dropout=0.5), prefixes_of(log)
    g, stop = torch.Generator().manual_seed(0), time.perf_counter() + seconds
    while True:
        for chosen in torch.randperm(len(items), generator=g).split(PREFIXES):
            if time.perf_counter() > stop:
                return peer
            peer.step(items[chosen], length[chosen], target[chosen])


def quality(args: argparse.Namespace) -> Row:
    """nDCG@10 of both on test cases after the same time of training."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options: dict[str, Any] = {"lr": args.lr, "set": ["train.precision=fp32", *args.set]}
        start = time.perf_counter()
        selftaught.pretrain(args.data, pretext="next_item", minutes=args.minutes, size=LENGTH, out=run, **options)
        seconds = time.perf_counter() - start
        loaded = bundle.load(run)
    log = Log(open_data(args.data), loaded.modality, filtered=True, seed=0)
    peer = trained_peer(log, seconds)
    peer.model.eval()

    @torch.inference_mode()
    def peer_scores(index: np.ndarray) -> Tensor:
        begin, stop = log.test.begin[index], log.test.stop[index]
        begin = np.maximum(begin, stop - LENGTH)
        length = stop - begin
        inside = np.arange(LENGTH) < length[:, None]
        at = np.where(inside, begin[:, None] + np.arange(LENGTH), 0)
        items = torch.from_numpy(np.where(inside, log.code[at] + 1, 0))
        return peer.model.full_sort_predict({"item_list": items, "length": torch.from_numpy(length)})[:, 1:]

    ours = encoder_scores(loaded.encoder, log, log.test, torch.device("cpu"))
    mine, theirs = (
        float(ranked(scores, log, log.test, True, lambda n: None).values("ndcg@10").mean())
        for scores in (ours, peer_scores)
    )
    name = f"nDCG@10 after {seconds / 60:.1f} minutes"
    return Row(name=name, unit="", ours=mine, peer=theirs, ratio=mine / theirs)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(args.threads)
    yield from speed(args.repeats)
    if args.data is not None:
        yield quality(args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", help="an event log to learn from for as long on both sides")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--lr", type=float, help="ours")
    parser.add_argument("--set", action="append", default=[], help="a setting of ours, KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    main(rows(parser.parse_args()))
