"""lightgcn and sgl: layers, losses and views as the papers write them, and users nobody trained on."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught.batch import Tokens
from selftaught.encoders.graphs import adjacency
from selftaught.errors import UserError
from selftaught.losses.items import softmax_loss
from selftaught.modality.event import Graph
from selftaught.pretext.lightgcn import LightGCN
from selftaught.pretext.sgl import SGL
from selftaught.ranks import whole
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from tests import runs
from tests.contracts.conftest import ITEMS, batch_of, make, walked


def layers(e: Tensor, graph: Graph, count: int) -> tuple[Tensor, Tensor]:
    """States of histories and of items by the matrix of eq. 8, users' own embeddings zero."""
    h, v = graph.histories, len(e)
    a = torch.zeros(h + v, h + v)
    a[graph.history, h + graph.item] = 1
    a = a + a.T
    d = a.sum(1).clamp_min(1).rsqrt()
    a = d[:, None] * a * d
    x = total = torch.cat([torch.zeros(h, e.shape[1]), e])
    for _ in range(count):
        x = a @ x
        total = total + x
    return (total / (count + 1))[:h], (total / (count + 1))[h:]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_layers_are_the_papers(count: int) -> None:
    task: Any = make("lightgcn")
    config = task.encoder.config
    task.encoder.config = dataclasses.replace(config, options={**config.options, "layers": count})
    found = task.encoder.propagate(task.a)
    histories, items = layers(task.encoder.model.items.weight, walked(), count)
    torch.testing.assert_close(found.histories, histories, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.target, items, rtol=1e-4, atol=1e-6)
    weight = torch.randn(len(items), generator=torch.Generator().manual_seed(0))
    gradients = []
    for h, v in ((found.histories, found.target), (histories, items)):
        task.zero_grad()
        (h.square().sum() + weight @ v.square().sum(1)).backward()
        gradients.append(task.encoder.model.items.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_a_history_is_served_as_a_known_user_with_it_would_be() -> None:
    """By the kept tables alone; an item that comes again counts once, and none at all is zero."""
    task, batch = make("lightgcn").eval(), batch_of("lightgcn")
    task(batch)
    encoder: Any = task.encoder
    spread = encoder.propagate(task.a)  # type: ignore[union-attr]
    x = Tokens(batch.inputs["items"], batch.inputs["items"] > 0, batch.inputs["items"] > 0)
    torch.testing.assert_close(encoder.next(x), spread.histories[batch.index], rtol=1e-4, atol=1e-6)
    twice = Tokens(*(torch.cat([y, y], 1) for y in x[:3]))
    torch.testing.assert_close(encoder.next(twice), encoder.next(x), rtol=1e-5, atol=1e-6)
    assert not encoder.next(Tokens(x.ids[:1] * 0, x.valid[:1] & False, x.valid[:1] & False)).any()
    assert (encoder.scores(encoder.next(x))[:, [0, -1]] == -torch.inf).all()


@pytest.mark.parametrize("loss", ["bpr", "softmax"])
def test_the_loss_is_the_papers(loss: str) -> None:
    task, batch = make("lightgcn", loss=loss, weight=0.3), batch_of("lightgcn", 10)
    e = task.encoder.model.items.weight  # type: ignore[union-attr]
    histories, items = layers(e, walked(), 3)
    u = batch.uniform(45, 12)
    terms, squares = [], []
    states, targets = [], []
    for row in range(10):
        n = int(batch.inputs["length"][row])
        ids = batch.inputs["items"][row, max(0, n - 12) : n]
        has = set(batch.inputs["items"][row, :n].tolist())
        for at, i in enumerate(ids):
            j = [x for x in range(1, ITEMS + 1) if x not in has][int(float(u[row, at]) * (ITEMS - len(has)))]
            state = histories[batch.index[row]]
            terms.append(-F.logsigmoid(state @ items[i] - state @ items[j]))
            squares.append(e[i].square().sum() + (e[j].square().sum() if loss == "bpr" else 0))
            states.append(state)
            targets.append(i)
    ranking = torch.stack(terms).mean()
    if loss == "softmax":
        ranking = softmax_loss(torch.stack(states), items, torch.stack(targets))
    expected = ranking + 0.15 * torch.stack(squares).mean()
    gradients = []
    for value in (task(batch).loss, expected):
        task.zero_grad()
        value.backward()
        gradients.append(e.grad.clone())
    torch.testing.assert_close(task(batch).loss, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_held_out_rows_are_asked_about_their_last_event_alone() -> None:
    """From the events before it, by the kept tables: they are no histories of the graph."""
    task, batch = make("lightgcn", loss="softmax", weight=0.0).eval(), batch_of("lightgcn")
    last = torch.arange(batch.inputs["items"].shape[1]) == batch.inputs["length"][:, None] - 1
    held = dataclasses.replace(batch, inputs={**batch.inputs, "scored": last}, index=batch.index + 10_000)
    found = task(held).loss
    states = []
    for row, n in enumerate(batch.inputs["length"].tolist()):
        ids = batch.inputs["items"][row : row + 1, max(0, n - 12) : n - 1]
        states.append(task.encoder.next(Tokens(ids, ids > 0, ids > 0))[0])  # type: ignore[operator]
    items = batch.inputs["items"][last]
    expected = softmax_loss(torch.stack(states), task.encoder.embeddings, items)  # type: ignore[union-attr]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sgl_compares_two_graphs_without_some_edges() -> None:
    task, batch = make("sgl", drop=0.3, decay=0.0), batch_of("sgl", 16)
    views = [task.view(batch, stream) for stream in (47, 48)]  # type: ignore[operator]
    edges = {tuple(x) for x in torch.stack([walked().history, walked().item], 1).tolist()}
    kept = [{tuple(x) for x in torch.stack([v.history, v.item], 1).tolist()} for v in views]
    assert all(k < edges for k in kept)
    assert all(0.65 < len(k) / len(edges) < 0.75 for k in kept)
    assert kept[0] != kept[1]
    e = task.encoder.model.items.weight  # type: ignore[union-attr]
    (h1, v1), (h2, v2) = (layers(e, view, 3) for view in views)
    contrast = torch.zeros(())
    for one, two, nodes in ((h1, h2, batch.index), (v1, v2, torch.arange(1, ITEMS + 1))):
        z1, z2 = F.normalize(one[nodes], dim=1), F.normalize(two[nodes], dim=1)
        contrast = contrast + F.cross_entropy(z1 @ z2.T / 0.2, torch.arange(len(nodes)))
    loss, metrics = task(batch)
    torch.testing.assert_close(metrics["contrast"], contrast.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, metrics["ranking"] + 0.01 * contrast, rtol=1e-4, atol=1e-4)


def test_what_an_item_nobody_had_gets() -> None:
    """Its embedding alone: no history passes anything to it, and it passes nothing on."""
    graph = Graph.of(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 2, 2, 2, 0]), 2, 4)
    assert (graph.history.tolist(), graph.item.tolist()) == ([0, 0, 1], [1, 2, 2]), "each once, and no item is no edge"
    a = adjacency(graph.history, graph.item, 2, 6)
    assert a.forth.to_dense()[0].tolist() == pytest.approx([0, 0.5**0.5, 0.5, 0, 0, 0])
    assert torch.equal(a.forth.to_dense().T, a.back.to_dense())
    assert a.root.tolist() == pytest.approx([1, 1, 2**0.5, 1, 1, 1])


def test_settings() -> None:
    for make_config, message in (
        (lambda: LightGCN.Config(weight=-1.0), "weight is -1"),
        (lambda: SGL.Config(drop=1.0), "drop is 1"),
        (lambda: SGL.Config(temperature=0.0), "temperature is 0"),
        (lambda: SGL.Config(decay=-1.0), "decay is -1"),
    ):
        with pytest.raises(UserError, match=message):
            make_config()


def _shards(rank: int, name: str) -> None:
    task, batch = make(name), batch_of(name, 12)
    config = TrainConfig(steps=1, batch=24, strategy="fsdp", precision="fp32")
    trainer = Trainer(task, config, Ranks(rank, 2, rank))
    before = task.encoder.model.target.clone()  # type: ignore[union-attr]
    trainer.train_step(batch)
    with whole(task), torch.no_grad():
        made = task.encoder.propagate(task.a)  # type: ignore[operator]
        assert torch.equal(task.encoder.model.target, made.target)  # type: ignore[union-attr]
    assert not torch.equal(made.target, before)


@pytest.mark.parametrize("name", ["lightgcn", "sgl"])
def test_the_last_tables_are_made_where_weights_lie_in_shards(name: str) -> None:
    runs.on_ranks(_shards, name)
