"""What a finished run and a recipe say when they are met again."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

import selftaught
from selftaught.errors import UserError
from selftaught.workflow.plan import Request
from selftaught.workflow.pretrain import _folder
from tests import runs

QUICK = ("--steps", 2, "--batch", 16)


def test_a_finished_run_on_other_data_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """An array has no name by which the two could be told apart."""
    draw = np.random.default_rng(0)
    one, two = (draw.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    choices = {"encoder": "resnet10_x0.25", "steps": 2, "batch": 8, "quiet": True, "out": tmp_path / "run"}
    selftaught.pretrain(one, **choices)
    before = runs.files(tmp_path / "run", "encoder/*")
    with pytest.raises(UserError, match=r"the data changed since the run began .* use another --out"):
        selftaught.pretrain(two, **choices)
    assert selftaught.pretrain(one, **choices) == tmp_path / "run"
    assert runs.files(tmp_path / "run", "encoder/*") == before


def test_a_recipe_names_its_folder_and_its_device(tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.succeed("pretrain", runs.pictures(), "--pretext", "rotation", *runs.ENCODER, *QUICK, "--out", run)
    file = run / "recipe.json"
    assert _folder(Request("x", recipe=str(file)), "some/pictures") == Path("runs/pictures-rotation")
    said = runs.one_line(runs.run("pretrain", runs.pictures(), "--recipe", file, "--device", "cpu"), 2)
    assert said == "--recipe says all about a run; leave out --device"
    recipe = json.loads(file.read_text())
    recipe["train"]["device"] = "cuda"
    other = tmp_path / "gpu.json"
    other.write_text(json.dumps(recipe))
    said = runs.one_line(runs.run("pretrain", runs.pictures(), "--recipe", other, "--out", tmp_path / "x"), 2)
    assert said == f"'{other}' is for device 'cuda', which this machine has not; change train.device in a copy of it"


def test_the_report_names_all_that_evaluate_was_asked(tmp_path: Path) -> None:
    run, test = tmp_path / "run", runs.write_pictures(tmp_path / "te st", 40, first=9000)
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, *QUICK, "--out", run)
    words = ("--train", runs.pictures(), "--labels", 2, 0.5, "--draws", 2)
    runs.succeed("evaluate", run, test, *words)
    page = html.unescape((run / "report.html").read_text("utf-8"))
    again = re.search(r"selftaught evaluate .*--draws 2\b", page)
    assert again is not None
    assert again[0] == f"selftaught evaluate {run} '{test}' --train {runs.pictures()} --labels 2 0.5 --draws 2"
