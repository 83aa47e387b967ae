"""The monitor of a run on several ranks, without a loop around it."""

from pathlib import Path

import pytest
from tests import runs
from tests.contracts.conftest import data_of, make

from selftaught.evaluation.monitor import HealthMonitor
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.folder import RunFolder
from selftaught.train.loop import Trainer
from selftaught.train.progress import Meter


def _look(rank: int, name: str, held: int, batch: int, world: int, folder: str) -> None:
    source, train, test = data_of(name)
    trainer = Trainer(make(name), TrainConfig(steps=100, batch=24, world=world), Ranks(rank, world, rank))
    monitor = HealthMonitor(source, train, test[:held], 0, 25, batch, None)
    with Meter("test", 100, quiet=True) as meter:
        monitor.look(trainer, 0, RunFolder(Path(folder), writes=rank == 0), meter)


def _loss(held: int, batch: int, world: int, name: str, folder: Path) -> float | None:
    folder.mkdir()
    runs.on_ranks(_look, name, held, batch, world, str(folder), world=world)
    (row,) = RunFolder(folder).rows("health.jsonl")
    return row["held_out_loss"]


@pytest.mark.parametrize("name", ["simclr", "vicreg"])
def test_ranks_take_equally_many_held_out_samples(tmp_path: Path, name: str) -> None:
    """So that losses which gather rows over ranks measure what one rank does, on all samples but a remainder."""
    found = _loss(13, 24, 2, name, tmp_path / "two")
    assert found == pytest.approx(_loss(13, 12, 1, name, tmp_path / "one"), rel=1e-5)


def test_too_few_held_out_samples_for_the_ranks_have_no_loss(tmp_path: Path) -> None:
    assert _loss(3, 24, 2, "simclr", tmp_path / "run") is None
