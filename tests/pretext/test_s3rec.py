"""s3rec: each of its four losses as the paper writes it, what is hidden, and what next_item gains by it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selftaught.batch import Tokens
from selftaught.errors import UserError
from selftaught.modality.event import Attributes, EventModality
from selftaught.pretext.s3rec import S3Rec
from tests import runs
from tests.contracts.conftest import ITEMS, attributed, batch_of, make


def naive(task: Any, batch: Any) -> dict[str, torch.Tensor]:
    """Event by event and history by history; sums over the number of all events."""
    x = task.modality.plain(batch)
    hidden, inside = task.hidden(batch, x), task.segment(batch, x)
    heads, table = task.heads, task.encoder.embeddings
    attributes = heads["attributes"].weight
    u = batch.uniform(52, x.ids.shape[1])
    sums = {name: torch.zeros(()) for name in ("aap", "mip", "map")}
    whole, parts = [], []

    def read(ids: torch.Tensor) -> torch.Tensor:
        """States of one history, each event seeing all: by a mask of its own in a batch of one."""
        valid = torch.ones_like(ids, dtype=torch.bool)[None]
        return task.encoder(Tokens(ids[None], valid, valid), both_ways=True).tokens[0]

    for row, n in enumerate(x.valid.sum(1).tolist()):
        ids = x.ids[row, :n]
        h = read(ids.masked_fill(hidden[row, :n], task.modality.mask))
        others = sorted(set(range(1, ITEMS + 1)) - set(batch.inputs["items"][row].tolist()))
        for at in range(n):
            item = int(ids[at])
            has = [(item - 1) // 5, 8 + item % 2]
            name = "map" if hidden[row, at] else "aap"
            scores = torch.sigmoid(attributes @ heads[name](h[at]))
            for a in range(10):
                sums[name] = sums[name] - torch.log(scores[a] if a in has else 1 - scores[a])
            if hidden[row, at]:
                other = others[int(float(u[row, at]) * len(others))]
                state = heads["mip"](h[at])
                sums["mip"] = sums["mip"] - torch.log(torch.sigmoid(state @ table[item] - state @ table[other]))
        whole.append(heads["sp"](read(ids.masked_fill(inside[row, :n], task.modality.mask))[-1]))
        parts.append(read(ids[inside[row, :n]])[-1])
    scores = torch.stack(whole) @ torch.stack(parts).T
    sums["sp"] = F.cross_entropy(scores, torch.arange(len(scores)), reduction="sum")
    return {name: value / x.valid.sum() for name, value in sums.items()}


def test_losses_and_gradients_are_the_papers() -> None:
    task, batch = make("s3rec").eval(), batch_of("s3rec", 10)
    expected = naive(task, batch)
    loss, metrics = task(batch)
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value.detach(), rtol=1e-4, atol=1e-5)
    whole = 0.2 * expected["aap"] + expected["mip"] + expected["map"] + 0.5 * expected["sp"]
    gradients = []
    for value in (loss, whole):
        task.zero_grad()
        value.backward()
        gradients.append([p.grad.clone() for p in task.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_events_see_what_comes_after_them() -> None:
    encoder: Any = make("s3rec").eval().encoder
    ids = torch.tensor([[3, 4, 5]])
    other, valid = torch.tensor([[3, 4, 6]]), torch.ones(1, 3, dtype=torch.bool)
    for both_ways in (False, True):
        a, b = (encoder(Tokens(x, valid, valid), both_ways=both_ways).tokens[0, 0] for x in (ids, other))
        assert torch.equal(a, b) != both_ways


def test_what_is_hidden() -> None:
    task: Any = make("s3rec", share=0.3)
    batch = batch_of("s3rec", 400)
    x = task.modality.plain(batch)
    hidden, inside = task.hidden(batch, x), task.segment(batch, x)
    assert abs(hidden.sum() / x.valid.sum() - 0.3) < 0.03
    assert not (hidden & ~x.valid).any()
    length, count = x.valid.sum(1), inside.sum(1)
    assert ((count >= 1) & (count <= length // 2)).all()
    assert (inside.int().diff(dim=1).clamp_min(0).sum(1) + inside[:, 0] == 1).all(), "one run"
    assert len(set(count[length == 12].tolist())) == 6
    share = inside.float()[length == 12].mean(0)
    assert share.min() > 0.05, "anywhere"


def test_attributes_by_hand() -> None:
    found = Attributes.of(torch.tensor([3, 1, 3, 4]), torch.tensor([2, 0, 1, 1]), 6, 3)
    hot = found.hot(torch.tensor([3, 0, 1, 4, 5, 3]))
    assert hot.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert attributed().hot(torch.tensor([1])).nonzero()[:, 1].tolist() == [0, 9]


def test_next_item_goes_on_from_it(tmp_path: Path) -> None:
    """By the command line, with the attributes from a table; a log without any is one line."""
    draw, rows = np.random.default_rng(0), []
    for user in range(120):
        item = int(draw.integers(40))
        for at in range(int(draw.integers(4, 12))):
            rows.append(f"u{user},i{item},{at}")
            item = (item + int(draw.integers(1, 3))) % 40
    (tmp_path / "log.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    (tmp_path / "items.csv").write_text("item,genres\n" + "".join(f"i{i},g{i // 5}|h{i % 2}\n" for i in range(40)))
    log, first = f"{tmp_path}/log.csv?items=items.csv", str(tmp_path / "first")
    runs.succeed("pretrain", log, "--pretext", "s3rec", "--steps", "20", "--out", first, "--quiet")
    said = runs.succeed("pretrain", log, "--encoder", first, "--steps", "5", "--out", str(tmp_path / "next"))
    assert "going on from learned weights" in said.err
    assert (tmp_path / "next/encoder/encoder.safetensors").is_file()
    alone = runs.run(
        "pretrain", f"{tmp_path}/log.csv", "--pretext", "s3rec", "--steps", "5", "--out", str(tmp_path / "x"), "--quiet"
    )
    assert "a table with a column of attributes" in runs.one_line(alone, 2)


def test_settings() -> None:
    for settings, message in (({"share": 0.0}, "share is 0"), ({"sp": -1.0}, "sp is -1")):
        with pytest.raises(UserError, match=message):
            S3Rec.Config(**settings)
    modality = EventModality(["a", "b", "c"], 8, {})
    with pytest.raises(UserError, match="the log has none"):
        S3Rec(make("s3rec").encoder, modality, S3Rec.Config())  # type: ignore[arg-type]
