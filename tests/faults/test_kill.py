"""A run that is killed at any moment, and started again by the same command, ends with the bytes of an unbroken one."""

import json
import random
import signal
import time
from functools import cache
from pathlib import Path

import pytest
from tests import runs

from selftaught.train.loop import Outcome
from selftaught.workflow.pretrain import _pace, _timed

STEPS = 30
_SAME = ("encoder/*", "log.jsonl", "health.jsonl", "alarms.jsonl", "recipe.json", "data.json", "seen.npy")


def _command(out: Path) -> list[object]:
    budget = ["--steps", STEPS, "--batch", 16, "--holdout", 0.25, "--size", 32]  # bf16 where the CPU has it
    often = [f"--set=train.{name}" for name in ("save_every=3", "health_every=5", "ema=0.9")]
    return ["pretrain", runs.pictures(), *runs.ENCODER, *budget, *often, "--out", out]


def _evaluation(run: Path) -> list[object]:
    return ["evaluate", run, runs.pictures(), "--labels", 1, 5, "--draws", 2, "--quiet"]


@cache
def unbroken() -> Path:
    out = runs.folder("unbroken")
    runs.succeed(*_command(out))
    runs.succeed(*_evaluation(out))
    return out


def _steps_logged(run: Path) -> int:
    log = run / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def _assert_same(run: Path) -> None:
    expected = runs.files(unbroken(), *_SAME)
    assert {"encoder/encoder.safetensors", "log.jsonl", "health.jsonl"} <= set(expected)
    found = runs.files(run, *_SAME)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_kill_while_files_are_written_and_between(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # The first checkpoint, a later one between its files, its visible folder, the bundle.
    for place in [("request.json", 1), ("model.safetensors", 1), ("optim.safetensors", 3), ("state.json", 2)]:
        assert runs.run(*_command(run), kill=place).code == -signal.SIGKILL, place
    saved = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert saved, "no kill came after the first checkpoint"
    running = runs.start(*_command(run))
    running.until(lambda: _steps_logged(run) >= 17)
    running.send(signal.SIGKILL)
    assert running.end().code == -signal.SIGKILL
    assert runs.run(*_command(run), kill=("encoder.safetensors", 1)).code == -signal.SIGKILL
    assert not (run / "encoder").exists()
    last = runs.succeed(*_command(run))
    assert f"resuming '{run}' at step {STEPS} of {STEPS}" in last.err
    _assert_same(run)
    # The last life made no step: what is said of the speed is that of all lives.
    rows = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    assert sum(row["seconds"] == 0 for row in rows) >= 4  # lives that came to train
    assert summary["seconds"] == pytest.approx(sum(_lives(rows)), abs=0.3)
    assert summary["samples_per_second"] > 0
    assert not list((run / "checkpoints").glob(".*"))
    for place in [("evaluation.partial.json", 3), ("evaluation.json", 1)]:
        assert runs.run(*_evaluation(run), kill=place).code == -signal.SIGKILL, place
    runs.succeed(*_evaluation(run))
    assert (run / "evaluation.json").read_bytes() == (unbroken() / "evaluation.json").read_bytes()
    assert not (run / "evaluation.partial.json").exists()
    assert "complete" in runs.succeed(*_command(run)).err


def test_the_time_of_a_run_is_that_of_all_its_lives() -> None:
    lives = [
        (0, 0.0),
        (10, 2.0),
        (20, 4.0),
        (20, 0.0),
        (30, 5.0),
        (30, 0.0),
    ]  # the second is slower than a step of the first
    rows = [{"step": step, "seconds": seconds} for step, seconds in lives]
    assert _timed(rows) == (30, 9.0)
    assert _timed([{"step": 10, "seconds": 2.0}, {"step": 20, "seconds": 1.0}]) == (
        20,
        3.0,
    )  # as older versions wrote it
    assert _timed([]) == (0, 0.0)
    assert _pace((30, 9.0), Outcome(40, None, 1.0, 160.0), 16) == {"seconds": 10.0, "samples_per_second": 64.0}
    assert _pace((40, 10.0), Outcome(40, None, 0.001, 0.0), 16) == {"seconds": 10.0, "samples_per_second": 64.0}
    assert _pace((0, 0.0), Outcome(40, None, 0.001, 0.0), 16) == {"seconds": None, "samples_per_second": None}


def _lives(rows: list[dict[str, float]]) -> list[float]:
    """Seconds of each life of a run, up to its last checkpoint."""
    lives: list[float] = []
    for row in rows:
        lives[-1:] = [*lives[-1:], 0.0] if row["seconds"] == 0 else [row["seconds"]]
    return lives


def test_work_lost_is_less_than_one_save_interval(tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = runs.start(*_command(run))
    running.until(lambda: _steps_logged(run) >= 8)
    running.send(signal.SIGKILL)
    running.end()
    done = _steps_logged(run)
    again = runs.start(*_command(run))
    again.until(lambda: "resuming" in again.said)
    again.send(signal.SIGKILL)
    resumed = int(again.end().err.split("at step ")[1].split()[0])
    assert done - 3 <= resumed <= done


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_under_way(tmp_path: Path, number: int, code: int) -> None:
    run = tmp_path / "run"
    running = runs.start(*_command(run))
    running.until(lambda: _steps_logged(run) >= 4)
    running.send(number)
    said = runs.one_line(running.end(), code)
    step = _steps_logged(run)
    assert 4 <= step < STEPS
    assert said == f"stopped at step {step} of {STEPS}, saved; type the same command to go on"
    assert (run / "checkpoints" / f"step-{step:08d}").is_dir()
    assert not (run / "encoder").exists()
    assert f"at step {step} of {STEPS}" in runs.succeed(*_command(run)).err
    _assert_same(run)


def test_ctrl_c_outside_of_training_is_one_line_too(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", 200, side=150)
    running = runs.start("pretrain", data, *runs.ENCODER, "--steps", 500, "--batch", 16, "--out", tmp_path / "run")
    running.until(lambda: "preparing" in running.said)
    running.send(signal.SIGINT)
    assert "the same command" in runs.one_line(running.end(), 130)


def test_a_folder_that_a_kill_left_half_claimed_is_free(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".request.json.4711").write_text('{"da')
    runs.succeed(*_command(run))
    _assert_same(run)


def test_finetuning_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def command(out: Path) -> list[object]:
        few = ["--epochs", 2, "--labels", 20, "--set", "train.save_every=2"]
        return ["finetune", unbroken(), runs.pictures(), *few, "--out", out]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.succeed(*command(whole))
    for place in [("model.safetensors", 3), ("scratch/checkpoints", 5), ("head.safetensors", 1)]:
        assert runs.run(*command(broken), kill=place).code == -signal.SIGKILL, place
    runs.succeed(*command(broken))
    same = ("encoder/*", "scratch/encoder/*", "log.jsonl", "scratch/log.jsonl", "finetune.json", "request.json")
    assert "scratch/encoder/head.safetensors" in runs.files(whole, *same)
    assert runs.files(broken, *same) == runs.files(whole, *same)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    """Each life of a run ends a few steps on, or while it starts, at a random moment within a step or a save; runs that
    came to their end are compared."""
    draw, kills, finished = random.Random(20), 0, 0
    moments: list[int] = []
    while kills < 20 or not finished:
        run = tmp_path / f"run-{finished}"
        running = runs.start(*_command(run))
        target = _steps_logged(run) + draw.randint(0, 6)
        while running.process.is_alive() and _steps_logged(run) < target:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.1))
        if running.process.is_alive():
            running.send(signal.SIGKILL)
        code = running.end().code
        if code == -signal.SIGKILL:
            kills += 1
            moments.append(_steps_logged(run))
            continue
        assert code == 0
        finished += 1
        _assert_same(run)
    assert len(set(moments)) > 3, f"the kills fell on the same few steps: {json.dumps(moments)}"
