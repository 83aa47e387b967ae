"""Bad samples and bad numbers: a few are left out and listed, many stop the run, and NaN never reaches the weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import runs

from selftaught.batch import Batch, Step
from selftaught.errors import RunStopped
from selftaught.train import checkpoint
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import NotFinite, Trainer, out_of_memory

N = 300

_PRETEXT = """
from dataclasses import dataclass
import torch
from selftaught.batch import Step
from selftaught.pretext import Pretext


class Mine(Pretext):
    @dataclass(frozen=True)
    class Config:
        at: int = 7

    family, paper, splits_batch = "mine", "none", {splits}

    def forward(self, batch):
        x = self.modality.view(batch, self.modality.light_view(), stream=1)
        loss = self.encoder(x).pooled.square().mean()
        if batch.step == self.config.at:
            {at}
        return Step(loss, {{}})
"""


def _pretext(folder: Path, at: str, splits: bool = True) -> Path:
    file = folder / "mine.py"
    file.write_text(_PRETEXT.format(at=at, splits=splits))
    return file


def _spoil(data: Path, count: int) -> dict[str, str]:
    """Damage `count` of the pictures in turn: truncated, zero bytes, text, a flipped byte; names and reasons."""
    expected = {}
    files = sorted(data.rglob("*.png"))
    for i, file in enumerate(files[:: len(files) // count][:count]):
        whole = bytearray(file.read_bytes())
        match i % 4:
            case 0:
                file.write_bytes(whole[: len(whole) // 2])
                reason = "truncated PNG"
            case 1:
                file.write_bytes(b"")
                reason = "empty file"
            case 2:
                file.write_text("these are not the pixels you look for")
                reason = "not a picture (starts with b'these ar')"
            case _:
                whole[20] ^= 255  # the height; its checksum no longer fits
                file.write_bytes(whole)
                reason = "truncated or damaged PNG header"
        expected[str(file.relative_to(data))] = reason
    return expected


def _pretrain(data: Path, out: Path, *more: object) -> list[object]:
    return ["pretrain", data, *runs.ENCODER, "--steps", 4, "--batch", 16, "--out", out, *more]


def test_one_per_cent_of_bad_files_is_left_out_and_listed(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", N)
    expected = _spoil(data, 4)
    run = tmp_path / "run"
    said = runs.succeed(*_pretrain(data, run)).err
    assert "4 samples left out" in said
    facts = json.loads((run / "data.json").read_text())
    found = {row["name"]: row["reason"] for row in facts["skipped"]}
    assert sorted(found) == sorted(expected)
    for name, reason in expected.items():
        assert found[name].startswith(reason), (name, found[name])
    assert facts["count"] == N - 4
    assert facts["train"] + facts["held_out"] == N - 4
    assert json.loads((run / "summary.json").read_text())["skipped"] == 4
    # The prepared cache remembers them: a second run says and lists the same.
    again = tmp_path / "again"
    runs.succeed(*_pretrain(data, again))
    assert (again / "data.json").read_bytes() == (run / "data.json").read_bytes()
    # A sound file in its place counts again.
    runs.picture(9, 0).save(data / next(iter(expected)))
    runs.succeed(*_pretrain(data, tmp_path / "repaired"))
    assert len(json.loads((tmp_path / "repaired" / "data.json").read_text())["skipped"]) == 3


def test_six_per_cent_of_bad_files_stop_the_run(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", N)
    expected = _spoil(data, N * 6 // 100)
    run = tmp_path / "run"
    message = runs.one_line(runs.run(*_pretrain(data, run)), 2)
    assert message.startswith(f"18 of {N} pictures in {data} cannot be used, more than 5% (")
    assert any(name in message for name in expected)
    assert not run.exists()


def test_nan_stops_before_the_weights_change(tmp_path: Path) -> None:
    task = _pretext(tmp_path, 'loss = loss * float("nan")')
    run = tmp_path / "run"
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--pretext", f"{task}:Mine", "--steps", 20, "--batch", 16]
    command += ["--set", "train.save_every=2", "--set", "train.health_every=50", "--out", run]
    message = runs.one_line(runs.run(*command), 3)
    assert message.startswith("loss is nan at step 7; stopped before the weights changed.")
    report = json.loads((run / "not_finite.json").read_text())
    assert (report["step"], report["loss"]) == (7, "nan")
    assert len(report["samples"]) == len(set(report["samples"])) == 16
    assert report["samples"] == _samples_of_step(run, 7)
    assert len((run / "log.jsonl").read_text().splitlines()) == 7
    assert not (run / "encoder").exists()
    saved, passed = checkpoint.load_last(run / "checkpoints")
    assert passed == []
    assert saved is not None
    assert saved.step == 6
    assert all(torch.isfinite(t).all() for group in saved.tensors.values() for t in group.values())
    # The same command meets the same batch; with the cause gone it finishes.
    assert runs.one_line(runs.run(*command), 3) == message
    task.write_text(task.read_text().replace("at: int = 7", "at: int = 70"))
    other = [*command[:-1], tmp_path / "other"]
    runs.succeed(*other)


def _samples_of_step(run: Path, step: int) -> list[int]:
    """The batch of a step, computed from the recipe alone."""
    from selftaught.data import holdout, open_data
    from selftaught.train.order import Order

    recipe = json.loads((run / "recipe.json").read_text())
    source = open_data(recipe["data"], cache=False)
    train, _ = holdout(source, recipe["holdout"])
    order = Order(len(train), recipe["train"]["batch"], recipe["train"]["seed"])
    return train[order.of_step(step)].tolist()


def test_nan_in_the_trial_steps_of_a_time_budget_is_reported_by_the_run(tmp_path: Path) -> None:
    task = _pretext(tmp_path, 'loss = loss * float("nan")')
    run = tmp_path / "run"
    task.write_text(task.read_text().replace("at: int = 7", "at: int = 1"))
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--pretext", task, "--minutes", 0.1, "--batch", 16]
    assert "at step 1;" in runs.one_line(runs.run(*command, "--out", run), 3)
    assert json.loads((run / "not_finite.json").read_text())["step"] == 1


class _Task(torch.nn.Module):
    """A task whose loss or gradient is not finite when it is told so."""

    splits_batch = True

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(3, 2)
        self.bad: str | None = None

    def forward(self, batch: Batch) -> Step:
        loss = self.encoder(batch.inputs["x"]).square().mean()
        if self.bad == "loss":
            loss = loss * float("inf")
        if self.bad == "gradient":  # sqrt has an infinite slope at 0
            loss = loss + (self.encoder.weight.sum() * 0).sqrt()
        return Step(loss, {})

    def before_step(self, progress: float) -> None:
        pass

    def after_step(self, progress: float) -> None:
        self.progress = progress


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_state_is_untouched_by_a_step_that_is_not_finite(bad: str, accumulate: int) -> None:
    task = _Task()
    trainer = Trainer(task, TrainConfig(steps=9, batch=4, accumulate=accumulate, ema=0.5), Ranks())
    batch = Batch({"x": torch.ones(4, 3)}, torch.tensor([5, 3, 8, 1]), 0, 0)
    trainer.train_step(batch)

    def state() -> list[Any]:
        assert trainer.ema is not None
        moments = [v.clone() for s in trainer.optimizer.state.values() for v in s.values()]
        weights = [p.detach().clone() for p in (*task.parameters(), *trainer.ema.parameters())]
        return [*weights, *moments, torch.tensor(trainer.step), torch.tensor(task.progress)]

    before = state()
    task.bad = bad
    with pytest.raises(NotFinite) as caught:
        trainer.train_step(batch)
    assert isinstance(caught.value, RunStopped)
    assert caught.value.exit_code == 3
    assert caught.value.report["samples"] == [5, 3, 8, 1]
    after = state()
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("error", "tells"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_memory_runs_out_in_other_words_too(error: Exception, tells: bool) -> None:
    told = out_of_memory(error, TrainConfig(4, batch=16), SimpleNamespace(splits_batch=False))
    assert (told is not None) == tells
    assert told is None or "--batch 8" in str(told)


@pytest.mark.parametrize(
    ("splits", "remedy"),
    [
        (True, "--batch 8 or --set train.accumulate=2 (BatchNorm then sees half as many samples)"),
        (False, "--batch 8 (smaller micro-batches"),
    ],
)
def test_out_of_memory_is_one_line(tmp_path: Path, splits: bool, remedy: str) -> None:
    task = _pretext(tmp_path, 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")', splits)
    run = tmp_path / "run"
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--pretext", task, "--steps", 20, "--batch", 16]
    message = runs.one_line(runs.run(*command, "--set", "train.save_every=3", "--out", run), 3)
    assert message.startswith(f"out of memory at batch 16; use {remedy}")
    assert message.endswith("The checkpoint of step 6 is whole")
    assert checkpoint.steps(run / "checkpoints") == [3, 6]


@pytest.mark.parametrize(
    "error", ['RuntimeError("DefaultCPUAllocator: can\'t allocate memory: 4 GB")', "MemoryError()"]
)
def test_out_of_memory_on_the_cpu_and_before_any_checkpoint(tmp_path: Path, error: str) -> None:
    task = _pretext(tmp_path, f"raise {error}")
    for budget in (["--steps", 20], ["--minutes", 0.1]):  # in the run, and in the trial steps that plan it
        command = ["pretrain", runs.pictures(), *runs.ENCODER, "--pretext", task, *budget, "--batch", 16]
        message = runs.one_line(runs.run(*command, "--out", tmp_path / budget[0]), 3)
        assert message.endswith("Nothing was saved yet")


def test_other_errors_of_a_users_task_keep_their_traceback(tmp_path: Path) -> None:
    task = _pretext(tmp_path, 'raise RuntimeError("shapes do not match")')
    command = ["pretrain", runs.pictures(), *runs.ENCODER, "--pretext", task, "--steps", 20, "--batch", 16]
    result = runs.run(*command, "--out", tmp_path / "run")
    assert result.code == 1
    assert "mine.py" in result.err
    assert "shapes do not match" in result.err
