"""Fine-tuning: how many labels a number means, and what is taken for the same request."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import selftaught
from selftaught.batch import Batch, Step
from selftaught.data import open_data
from selftaught.downstream.classify import Classify
from selftaught.errors import RunStopped, UserError
from selftaught.workflow import finetune as finetuning
from selftaught.workflow.evaluate import Split
from selftaught.workflow.jobs import job_called
from tests import runs

N = 320


def test_all_labels_are_all_as_a_whole_number_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In Python labels=1 is an int, on the command line --labels 1 a float."""
    source = open_data(runs.pictures(N), cache=False)
    parts = Split(source, np.arange(N), source, np.arange(N), {})
    job = job_called("classify")
    counts = [len(job.draw(parts, amount, 0)) for amount in (1, 1.0, 0.5, 2, 2.0)]
    assert counts[:2] == [N, N]
    assert counts[2] == pytest.approx(N / 2, abs=2)
    assert counts[3:] == [8, 8]
    asked: list[Any] = []
    monkeypatch.setattr(finetuning, "finetune", lambda *given: asked.append(given[4].labels) or tmp_path)
    selftaught.finetune(tmp_path, tmp_path, labels=1)
    assert repr(asked) == "[1.0]"


def test_finetuning_on_data_that_changed_is_not_taken_for_the_same(tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, "--steps", 2, "--batch", 16, "--out", run)
    data = runs.write_pictures(tmp_path / "other", 120, first=7000)
    words = ("finetune", run, data, "--mode", "head", "--labels", 2, "--epochs", 1, "--no-scratch")
    out = tmp_path / "out"
    runs.succeed(*words, "--out", out)
    before = runs.files(out, "finetune.json", "encoder/*")
    assert json.loads(before["finetune.json"])["rows"][0]["labels"] == 2
    runs.succeed(*words, "--out", out)
    assert runs.files(out, "finetune.json", "encoder/*") == before
    (data / "arc" / "new.png").write_bytes((data / "arc" / "0003.png").read_bytes())
    refused = runs.one_line(runs.run(*words, "--out", out), 2)
    assert refused.startswith(f"'{out}' holds another run (data_hash: ")
    (data / "arc" / "new.png").unlink()
    request = json.loads((out / "request.json").read_text())
    before_training = {name: value for name, value in request.items() if name != "encoder_hash"}
    (out / "request.json").write_text(json.dumps(before_training))
    said = "is of a version that trained encoders in evaluation mode; use another --out"
    assert runs.one_line(runs.run(*words, "--out", out), 2) == f"'{out}' {said}"
    old = {name: value for name, value in request.items() if name not in ("data_hash", "test_hash")}
    (out / "request.json").write_text(json.dumps(old))
    said = "is of a version that kept no hash of the data, which may have changed; use another --out"
    assert runs.one_line(runs.run(*words, "--out", out), 2) == f"'{out}' {said}"
    assert runs.files(out, "finetune.json", "encoder/*") == before


def test_what_was_learned_with_labels_is_not_tested_on(tmp_path: Path) -> None:
    """Neither are pictures that pretraining held out; the model from scratch has seen its labels alone."""
    run, data, more = tmp_path / "run", runs.pictures(), ("--labels", 4, "--epochs", 1)
    runs.succeed("pretrain", data, *runs.ENCODER, "--steps", 2, "--batch", 16, "--out", run)
    other = runs.write_pictures(tmp_path / "other", 120, first=7000)
    out = tmp_path / "elsewhere"
    runs.succeed("finetune", run, data, "--test", other, *more, "--mode", "head", "--out", out)
    seen, both, scratch = (set(np.load(p / "seen.npy").tolist()) for p in (run, out, out / "scratch"))
    assert len(scratch) == 16
    assert both == seen | scratch
    assert scratch <= set(open_data(data).hashes.tolist())
    rates = [json.loads((p / "train.json").read_text())["optim"]["lr"] for p in (out, out / "scratch")]
    assert rates == [job_called("classify").describe(mode)["lr"] for mode in ("head", "full")]
    assert rates[0] > rates[1], "a whole network does not bear a head's step"
    alone = tmp_path / "alone"
    shutil.copytree(run / "encoder", alone / "encoder")
    runs.succeed("finetune", alone, data, "--test", other, *more, "--no-scratch", "--out", tmp_path / "unknown")
    assert not (tmp_path / "unknown" / "seen.npy").exists(), "what pretraining saw stays unknown"


def test_a_loaded_encoder_trains_in_training_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the one from scratch does: BatchNorm by the batch, with dropout. What a mode freezes stays as it is."""
    run, modes = tmp_path / "run", []
    selftaught.pretrain(runs.pictures(), encoder="resnet10_x0.25", steps=2, batch=16, out=run, quiet=True)
    forward = Classify.forward

    def watched(self: Classify, batch: Batch) -> Step:
        modes.append(self.encoder.model.bn1.training)
        return forward(self, batch)

    monkeypatch.setattr(Classify, "forward", watched)
    for mode, expected in (("full", [True, True]), ("head", [False, True])):
        modes.clear()
        options: dict[str, Any] = {"mode": mode, "labels": 2, "epochs": 1, "quiet": True, "out": tmp_path / mode}
        selftaught.finetune(run, runs.pictures(), **options)
        assert list(dict.fromkeys(modes)) == list(dict.fromkeys(expected))
        own, tuned = (load_file(p / "encoder" / "encoder.safetensors") for p in (run, tmp_path / mode))
        moved = any(not torch.equal(own[n], tuned[n]) for n in own if n.endswith("running_mean"))
        assert moved == (mode == "full")


def test_a_finetuning_goes_on_as_it_began_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    selftaught.pretrain(runs.pictures(), encoder="resnet10_x0.25", steps=2, batch=16, out=run, quiet=True)
    options: dict[str, Any] = {"labels": 4, "epochs": 4, "batch": 8, "out": out, "scratch": False, "quiet": True}

    def full(*parts: Any) -> None:
        raise RunStopped("disk full")

    with monkeypatch.context() as broken:  # after the first checkpoint
        broken.setattr(finetuning, "fit", lambda trainer, *more: trainer.save(more[2]) or full())
        with pytest.raises(RunStopped):
            selftaught.finetune(run, runs.pictures(), **options)
    with monkeypatch.context() as other:
        other.setattr(finetuning, "pick_precision", lambda device, encoder: "bf16")
        with pytest.raises(UserError, match=r"began otherwise \(precision: \"fp32\" -> \"bf16\"\); go on as it began"):
            selftaught.finetune(run, runs.pictures(), **options)
    monkeypatch.setattr(finetuning, "pick_precision", lambda device, encoder: "fp32")
    selftaught.finetune(run, runs.pictures(), **options)


def test_what_lies_in_a_finished_model_stays_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known failure: the same command again wrote the bundle anew, and what others had put beside it was gone."""
    run = tmp_path / "run"
    selftaught.pretrain(runs.pictures(), encoder="resnet10_x0.25", steps=2, batch=16, out=run, quiet=True)
    options: dict[str, Any] = {"labels": 4, "epochs": 1, "batch": 8, "quiet": True}
    tuned = selftaught.finetune(run / "encoder", runs.pictures(), **options)
    assert tuned == run / "finetune-full-4", "beside the run's bundle, not in it"
    (tuned / "encoder" / "notes.txt").write_text("mine")
    before = json.loads((tuned / "finetune.json").read_text())
    assert len(before["differences"]) > 0
    again = selftaught.finetune(run, runs.pictures(), **{**options, "scratch": False})
    assert again == tuned
    assert (tuned / "encoder" / "notes.txt").read_text() == "mine"
    assert json.loads((tuned / "finetune.json").read_text()) == before, "what was compared stays in the table"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="finetune trains in one process; start it without torchrun"):
        selftaught.finetune(run, runs.pictures(), **options)


@pytest.mark.parametrize(("name", "where"), [("mode", "--mode"), ("classes", "the data")])
def test_what_an_option_says_is_not_set(name: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"setting 'task.{name}' is said by {where}; leave it out"):
        job_called("classify").settings("full", {name: "head"})
