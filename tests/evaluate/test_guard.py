"""The guard against forgetting, on a small run of masked language modelling and of SimCLR, without a loop around it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import runs
from tests.contracts.conftest import Digits, batch_of, data_of, make
from torch import nn

from selftaught.errors import UserError
from selftaught.evaluation.guard import LEAST, Guard, Samples, drawn, kept, nearest, votes
from selftaught.evaluation.intervals import rise
from selftaught.pretext import Pretext
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.folder import RunFolder
from selftaught.train.loop import Trainer
from selftaught.train.progress import Meter

TASKS = ("mlm", "simclr")
ONE = Ranks()


class Watched:
    """A trained task, a guard over it, and what the guard wrote."""

    def __init__(
        self, name: str, folder: Path, labels: bool = True, ranks: Ranks = ONE, general: int = 96, steps: int = 30
    ) -> None:
        data: Digits = data_of(name)
        task: Pretext = make(name)
        _train(task, name, steps)
        self.trainer = Trainer(task, TrainConfig(steps=100, batch=24, world=ranks.world), ranks)
        self.run, self.source = RunFolder(folder, writes=ranks.first), data.source
        folder.mkdir(exist_ok=True)
        source = data.source if labels else data.source.subset(np.arange(len(data.source)))
        if not labels:
            source.labels = None
        self.guard = Guard(Samples(source, data.train[:general]), Samples(source, data.test[:64]), 0, 25)

    def look(self, step: int) -> dict[str, Any]:
        with Meter("test", 100, quiet=True) as meter:
            self.note = self.guard.look(self.trainer, step, self.run, meter)
        return self.run.rows("retention.jsonl")[-1]

    def alarms(self) -> list[dict[str, Any]]:
        return self.run.rows("alarms.jsonl")


def _train(task: Pretext, name: str, steps: int) -> None:
    """A few steps on the general samples, so that there is something to forget."""
    optimizer = torch.optim.AdamW(task.parameters(), 2e-3)
    batch = batch_of(name, 96)
    torch.manual_seed(0)  # of dropout
    for step in range(steps):
        optimizer.zero_grad()
        task(dataclasses.replace(batch, step=step)).loss.backward()
        optimizer.step()


@pytest.fixture(scope="module", params=TASKS)
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return Watched(request.param, tmp_path_factory.mktemp(request.param))


def test_the_same_weights_have_the_same_figures_and_no_alarm(watched: Watched) -> None:
    """Whatever step it is and whatever generator: masks and views are always the same."""
    torch.manual_seed(1)
    first = watched.look(0)
    torch.manual_seed(2)
    again = watched.look(100)
    assert {**again, "step": 0} == first
    assert (first["neighbours_kept"], first["rise"], first["rise_low"], first["rise_high"]) == (1, 0, 0, 0)
    assert watched.alarms() == []
    assert watched.trainer.task.training
    assert watched.note is not None
    assert "neighbours kept 1.00" in watched.note


def test_a_destroyed_encoder_is_noticed_once(watched: Watched) -> None:
    watched.look(0)
    before = {n: p.detach().clone() for n, p in watched.trainer.task.encoder.named_parameters()}
    try:
        for part in watched.trainer.task.encoder.parameters():
            nn.init.zeros_(part)
        row = watched.look(100)
        watched.look(200)
    finally:
        watched.trainer.task.encoder.load_state_dict(before, strict=False)
    assert row["general_loss"] > watched.run.rows("retention.jsonl")[0]["general_loss"]
    assert row["neighbours_kept"] < 0.6
    (alarm,) = watched.alarms()
    assert (alarm["name"], alarm["step"]) == ("forgetting", 100)
    assert "above that of step 0" in alarm["seen"] or "k-NN accuracy on general data fell" in alarm["seen"]
    assert "lower --lr, take fewer steps, or mix general data" in alarm["remedy"]


def test_a_worse_vote_is_noticed_where_the_loss_says_nothing(tmp_path: Path) -> None:
    watched = Watched("simclr", tmp_path)
    watched.trainer.task.supervised = True  # so that it has no loss without labels
    assert watched.look(0)["general_loss"] is None
    assert watched.alarms() == []
    for part in watched.trainer.task.encoder.parameters():
        nn.init.zeros_(part)
    row = watched.look(100)
    (alarm,) = watched.alarms()
    assert "k-NN accuracy on general data fell to" in alarm["seen"]
    assert 0 <= row["general_knn"] < watched.run.rows("retention.jsonl")[0]["general_knn"]


def test_without_labels_and_loss_the_neighbours_tell(tmp_path: Path) -> None:
    watched = Watched("simclr", tmp_path, labels=False)
    watched.trainer.task.supervised = True
    assert "general_knn" not in watched.look(0)
    assert watched.alarms() == []
    for part in watched.trainer.task.encoder.parameters():
        nn.init.zeros_(part)
    watched.look(100)
    (alarm,) = watched.alarms()
    assert "nearest neighbours are kept, hardly above chance" in alarm["seen"]


def test_a_guard_made_anew_goes_on_as_the_old_one(tmp_path: Path) -> None:
    """What a resumed run does: it has the log and the folder, and the weights of a later step."""
    one, two = Watched("simclr", tmp_path / "one"), Watched("simclr", tmp_path / "two")
    one.look(0)
    two.look(0)
    for watched in (one, two):
        with torch.no_grad():
            for p in watched.trainer.task.encoder.parameters():
                p.mul_(0.9)
    two.guard = Guard(two.guard.general, two.guard.domain, 0, 25)
    assert one.look(100) == two.look(100)
    assert (tmp_path / "one" / "alarms.jsonl").exists() == (tmp_path / "two" / "alarms.jsonl").exists()
    (tmp_path / "two" / "retention.safetensors").unlink()
    with pytest.raises(UserError, match=r"retention.safetensors' is missing, .* begin again with another --out"):
        two.look(200)


def test_too_few_samples_and_samples_drawn() -> None:
    source, train, _ = data_of("mlm")
    with pytest.raises(UserError, match=f"--general holds 10 different samples .* needs {LEAST} or more"):
        Guard(Samples(source, train[:10]), Samples(source, train), 0, 25)
    rows = np.concatenate([train, train[:50]])
    found = drawn(source, rows, 3)
    assert len(set(found.rows.tolist())) == len(found.rows) <= 512
    assert np.isin(found.rows, train).all()
    assert np.array_equal(found.rows, drawn(source, rows, 3).rows)
    assert not np.array_equal(found.rows, drawn(source, rows, 4).rows)


def test_neighbours_kept_against_a_plain_count() -> None:
    g = torch.Generator().manual_seed(0)
    before, after = torch.randn(40, 8, generator=g), torch.randn(40, 8, generator=g)
    a, b = nearest(before), nearest(after)
    cosine = nn.functional.cosine_similarity(before[:, None], before[None], dim=2)
    for i in range(40):
        order = [j for j in cosine[i].argsort(descending=True).tolist() if j != i]
        assert set(a[i].tolist()) == set(order[:10])
    count = sum(len(set(x.tolist()) & set(y.tolist())) for x, y in zip(a, b))
    assert kept(a, b) == pytest.approx(count / 400)
    assert kept(a, a) == 1
    assert kept(a, nearest(before * 3)) == 1
    labels = torch.arange(40) % 2
    expected = [int(2 * labels[row].sum() > 10) == labels[i] for i, row in enumerate(a)]
    assert votes(a, labels).tolist() == [bool(x) for x in expected]


def test_the_rise_is_paired() -> None:
    """What is hard for both is no noise; and no rise is called one about as seldom as the interval says."""
    g = torch.Generator().manual_seed(0)
    before = 3 + torch.rand(32, generator=g)
    found = rise(before, before * 1.05 + 0.01 * torch.randn(32, generator=g))
    assert found.value == pytest.approx(0.05, abs=0.005)
    assert 0.04 < found.low < found.value < found.high < 0.06
    assert rise(before, before) == (0, 0, 0)
    false = sum(rise(before, before + 0.1 * torch.randn(32, generator=g)).low > 0 for _ in range(200))
    assert false <= 14  # 2.5 % expected; a percentile interval of 32 is a little narrow


def test_rows_are_plain_json(watched: Watched) -> None:
    lines = (watched.run.path / "retention.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["general_losses"]) == 6 for line in lines)


def _look(rank: int, name: str, general: int, world: int, folder: str) -> None:
    watched = Watched(name, Path(folder), ranks=Ranks(rank, world, rank), general=general, steps=0)
    with Meter("test", 100, quiet=True) as meter:
        watched.guard.look(watched.trainer, 0, watched.run, meter)


def _looked(name: str, general: int, world: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    runs.on_ranks(_look, name, general, world, str(folder), world=world)
    return RunFolder(folder).rows("retention.jsonl")[-1]


@pytest.mark.parametrize("name", ["simclr", "rotation"])
def test_ranks_measure_what_one_does(tmp_path: Path, name: str) -> None:
    """Also the losses that gather all ranks' rows: each sample is in its group once."""
    one, two = (_looked(name, 96, world, tmp_path / str(world)) for world in (1, 2))
    assert two["general_losses"] == pytest.approx(one["general_losses"], rel=1e-4)
    assert two["domain_loss"] == pytest.approx(one["domain_loss"], rel=1e-4)
    assert two["neighbours_kept"] == one["neighbours_kept"] == 1


def test_groups_that_ranks_cannot_share_alike_are_cut(tmp_path: Path) -> None:
    """70 samples make groups of 18 and 17; a group of 17 leaves one out."""
    one, two = (_looked("simclr", 70, world, tmp_path / str(world)) for world in (1, 2))
    assert two["general_losses"][:2] == pytest.approx(one["general_losses"][:2], rel=1e-4)
    assert two["general_losses"][2:] == pytest.approx(one["general_losses"][2:], rel=0.1)
    assert len(two["general_losses"]) == 4
