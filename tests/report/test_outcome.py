"""What a task makes of held-out samples, in its run folder and in the report."""

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from tests import runs

from selftaught.batch import Answers, Batch
from selftaught.reporting import write_report
from selftaught.train.config import TrainConfig
from selftaught.train.folder import RunFolder
from selftaught.train.loop import Trainer
from selftaught.workflow.outcome import write_outcome

VIT = ("--encoder", "vit_micro", "--steps", 2, "--batch", 16)


def test_pictures_and_answers_are_kept_with_the_run(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", 120)
    runs.succeed("pretrain", data, "--pretext", "mae", *VIT, "--out", tmp_path / "mae")
    found = json.loads((tmp_path / "mae/outcome.json").read_text())
    assert found == {"samples": 8, "pictures": ["picture", "reads", "predicts"]}
    with Image.open(tmp_path / "mae/rebuilt.png") as grid:
        assert grid.width / grid.height == pytest.approx(3 / 8, abs=0.02)
    page = write_report(tmp_path / "mae").read_text()
    assert "What the task makes of it" in page
    assert page.count("data:image/png;base64") == 1
    rotation = ("--pretext", "rotation", *runs.ENCODER, "--steps", 2, "--batch", 16)
    runs.succeed("pretrain", data, *rotation, "--out", tmp_path / "rotation")
    found = json.loads((tmp_path / "rotation/outcome.json").read_text())
    held = json.loads((tmp_path / "rotation/data.json").read_text())["held_out"]
    assert [sum(row) for row in found["counts"]] == [held] * 4  # each picture in all four orientations
    assert "guess would be in 25.0" in write_report(tmp_path / "rotation").read_text()


def test_what_is_shown_is_not_the_first_class_folders(tmp_path: Path) -> None:
    """Held-out samples lie by class folder; those that are shown and asked about are drawn from all of them."""
    asked: list[np.ndarray] = []

    def fetch(positions: np.ndarray, step: int) -> Batch:
        asked.append(positions)
        return Batch({"x": torch.zeros(len(positions), 1)}, torch.from_numpy(positions), 0, step)

    def answers(batch: Batch) -> Answers:
        right = batch.index // 1000  # four class folders of a thousand
        return Answers(tuple("abcd"), right, right)

    task = SimpleNamespace(rebuilt=lambda batch: (), answers=answers)
    trainer = mock.Mock(spec=Trainer, task=task, step=5, device=torch.device("cpu"), measuring=contextlib.nullcontext)
    trainer.config = TrainConfig(steps=5, batch=128, seed=3)
    write_outcome(trainer, None, fetch, 4000, RunFolder(tmp_path))
    shown, questions = asked[0], np.concatenate(asked[1:])
    assert len(set(shown // 1000)) > 1
    assert shown.tolist() == questions[:8].tolist()
    assert len(set(questions.tolist())) == 1024
    counts = np.array(json.loads((tmp_path / "outcome.json").read_text())["counts"])
    assert (np.diag(counts) > 200).all()


def test_a_task_that_makes_neither_leaves_no_file(tmp_path: Path) -> None:
    data = runs.write_pictures(tmp_path / "data", 40)
    runs.succeed("pretrain", data, *VIT, "--out", tmp_path / "run")
    assert not (tmp_path / "run/outcome.json").exists()
    assert "What the task makes of it" not in write_report(tmp_path / "run").read_text()


@pytest.mark.parametrize(
    "outcome",
    [
        '{"pictures": ["<script>alert(1)</script>"], "answers": ["<b>x</b>", "y"], "counts": [[1, 2], [3, 4]]}',
        '{"pictures": "none", "answers": ["x", "y"], "counts": [[1, 2]]}',
        '{"answers": ["x", "y"], "counts": [[1, "2"], [3, -4]]}',
        '{"answers": ["x", "y"], "counts": [[0, 0], [0, 0]]}',
        "[]",
        "{",
    ],
)
def test_broken_or_malicious_files_leave_the_page_whole(tmp_path: Path, outcome: str) -> None:
    (tmp_path / "outcome.json").write_text(outcome)
    (tmp_path / "rebuilt.png").write_bytes(b"no picture")
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page
    assert "<b>x</b>" not in page
    assert "rebuilt.png is no PNG picture" in page
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "png")
    (tmp_path / "rebuilt.png").write_bytes(file.getvalue())
    page = write_report(tmp_path).read_text()  # with the picture its caption is drawn
    assert "no PNG" not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page or "<script>" not in outcome
