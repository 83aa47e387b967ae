"""The logs once more for TensorBoard."""

import json
import signal
from pathlib import Path

import pytest
from tests import runs

from selftaught.errors import UserError
from selftaught.train import config
from selftaught.train.config import TrainConfig


def test_event_files_tell_what_the_logs_tell_also_after_a_kill(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    often = [x for name in ("save_every=2", "health_every=2", "tensorboard=true") for x in ("--set", f"train.{name}")]
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--steps", 6, "--batch", 16, *often, "--out", run]
    assert runs.run(*command, kill=("optim.safetensors", 2)).code == -signal.SIGKILL
    runs.succeed(*command)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for group, log, key in (("train", "log", "loss"), ("train", "log", "lr"), ("health", "health", "rank")):
        rows = [json.loads(line) for line in (run / f"{log}.jsonl").read_text().splitlines()]
        found = {event.step: event.value for event in events.Scalars(f"{group}/{key}")}
        expected = {row["step"]: row[key] for row in rows}
        assert found == pytest.approx(expected, rel=1e-6)


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'selftaught\[log\]'"):
        TrainConfig(steps=1, batch=1, tensorboard=True)
