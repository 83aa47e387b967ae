"""The monitor of a run on several ranks, without a loop around it."""

from pathlib import Path

import pytest
from tests import runs
from tests.contracts.conftest import data_of, make

from selftaught.evaluation import monitor
from selftaught.evaluation.health import HealthRow
from selftaught.evaluation.monitor import HealthMonitor
from selftaught.evaluation.watch import Alarm
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


def test_what_is_wrong_with_one_output_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, train, test = data_of("simclr")
    trainer = Trainer(make("simclr"), TrainConfig(steps=100, batch=24), Ranks())
    watch, run = HealthMonitor(source, train, test[:20], 0, 25, 24, None), RunFolder(tmp_path)

    def said(history: list[HealthRow], *more: object) -> Alarm:
        return Alarm("encoder" if history is watch.history else "projector", history[-1].step, "", "", "")

    monkeypatch.setattr(monitor, "diagnose", said)
    with Meter("test", 100, quiet=True) as meter:
        for step in (0, 25):
            watch.look(trainer, step, run, meter)
    assert [(r["step"], r["name"]) for r in run.rows("alarms.jsonl")] == [(0, "encoder"), (0, "projector")]
