"""The whole way on tiny data: pretrain, evaluate, finetune, predict, embed, report, load; by command line and Python."""

import csv
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

import selftaught
from selftaught import api
from selftaught.data import open_data
from selftaught.errors import UserError
from selftaught.evaluation.features import encode
from selftaught.train.folder import RunFolder
from selftaught.workflow import evaluate as evaluation
from selftaught.workflow.evaluate import Asked, split
from selftaught.workflow.measure import evaluate as measured
from selftaught.workflow.prepare import open_source
from tests import runs

N, STEPS, BATCH = 400, 6, 16
SHARED = {"steps": STEPS, "batch": BATCH, "holdout": 0.25}
ENCODERS = {"simclr": "resnet10_x0.25", "mae": "vit_micro", "rotation": "resnet10_x0.25"}
ROW = {"measure", "features", "labels", "metric", "value", "low", "high", "seeds", "n", "labels_n"}


@pytest.fixture(scope="session")
def data() -> Path:
    """Four classes, and three copies of pictures under other names."""
    root = runs.folder("workflow-data")
    runs.write_pictures(root, N)
    for i, name in enumerate(sorted(p.name for p in (root / "arc").glob("*.png"))[:3]):
        (root / "arc" / f"copy-{i}.png").write_bytes((root / "arc" / name).read_bytes())
    return root


def _pretrain(data: Path, task: str, out: Path, *more: object) -> runs.Result:
    words = [word for name, value in SHARED.items() for word in (f"--{name}", value)]
    words += ["--set", "train.save_every=3", *more]
    return runs.succeed("pretrain", data, "--pretext", task, "--encoder", ENCODERS[task], *words, "--out", out)


@pytest.fixture(scope="session", params=list(ENCODERS))
def run(request: pytest.FixtureRequest, data: Path) -> Path:
    out = runs.folder(f"workflow-{request.param}")
    said = _pretrain(data, request.param, out).err
    assert f"plan: {request.param} on {ENCODERS[request.param]}" in said
    return out


@pytest.fixture(scope="session")
def simclr(data: Path) -> Path:
    out = runs.folder("workflow-simclr")
    _pretrain(data, "simclr", out)
    return out


@pytest.fixture(scope="session")
def evaluated(simclr: Path, data: Path) -> tuple[Path, runs.Result]:
    return simclr, runs.succeed("evaluate", simclr, data, "--labels", 2, 1, "--draws", 2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """In this process what the runs of the tests have in theirs."""
    threads = torch.get_num_threads()
    with mock.patch.dict(os.environ, runs.environment()), threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def _hash(path: Path) -> int:
    return int.from_bytes(hashlib.blake2b(path.read_bytes(), digest_size=8).digest(), "little")


def test_run_folder_holds_what_is_promised(run: Path, data: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["train"]["steps"], recipe["train"]["batch"], recipe["holdout"]) == (STEPS, BATCH, 0.25)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(np.isfinite(row["loss"]) and {"step", "loss", "grad_norm", "lr"} <= set(row) for row in rows)
    health = [json.loads(line) for line in (run / "health.jsonl").read_text().splitlines()]
    assert health[0]["step"] == 0
    assert health[-1]["step"] == STEPS
    facts = json.loads((run / "data.json").read_text())
    assert facts["count"] == N + 3 == facts["train"] + facts["held_out"]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert sorted(p.name for p in (run / "encoder").iterdir()) == ["README.md", "config.json", "encoder.safetensors"]
    weights = load_file(run / "encoder" / "encoder.safetensors")
    assert all(torch.isfinite(t).all() for t in weights.values())
    assert not [p for p in run.rglob("*") if p.suffix in (".pt", ".pth", ".pkl", ".pickle", ".ckpt")]


def test_pretraining_moved_the_weights_and_kept_the_held_out_apart(run: Path, data: Path) -> None:
    seen = set(np.load(run / "seen.npy").tolist())
    facts = json.loads((run / "data.json").read_text())
    hashes = [_hash(p) for p in sorted(data.rglob("*.png"))]
    assert seen < set(hashes)
    assert sum(h in seen for h in hashes) == facts["train"], "copies of a picture fell on both sides"
    first = json.loads((run / "health.jsonl").read_text().splitlines()[0])
    last = json.loads((run / "health.jsonl").read_text().splitlines()[-1])
    assert first["rank"] != last["rank"]
    assert first["held_out_loss"] != last["held_out_loss"]


def test_evaluation_has_the_documented_rows(evaluated: tuple[Path, runs.Result]) -> None:
    run, said = evaluated
    found = json.loads((run / "evaluation.json").read_text())
    assert set(found) == {"protocol", "data", "data_hash", "asked", "recipe_hash", "verdict", "rows"}
    protocol = found["protocol"]
    assert protocol["split"] == "held out from pretraining by content hash"
    assert protocol["seen_by_pretraining"] == protocol["train_samples"]
    keys = {(r["measure"], r["features"], r["labels"], r["labels_n"]) for r in found["rows"]}
    features, amounts = ("random_init", "raw", "pretrained"), ((2, 8), (1.0, protocol["train_samples"]))
    assert keys == {(m, f, a, n) for m in ("knn", "linear_probe") for f in features for a, n in amounts}
    for row in found["rows"]:
        baseline = row["features"] in ("random_init", "raw")
        assert set(row) == ROW | (set() if baseline else {"against"}), row
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["n"] == protocol["test_samples"]
        if not baseline:
            assert set(row["against"]) == {"random_init", "raw"}
    assert found["verdict"]
    assert "random init" in said.out
    assert "raw" in said.out
    assert "report.html" in said.err
    assert not (run / "evaluation.partial.json").exists()


def test_no_tested_sample_was_seen(evaluated: tuple[Path, runs.Result], data: Path) -> None:
    run, _ = evaluated
    seen = set(np.load(run / "seen.npy").tolist())
    tested = json.loads((run / "atlas.json").read_text())["names"]
    assert len(tested) == json.loads((run / "evaluation.json").read_text())["protocol"]["test_samples"]
    assert seen.isdisjoint(_hash(data / name) for name in tested)


def test_split_with_a_training_set_of_its_own_leaves_out_what_was_seen_and_what_it_shares(tmp_path: Path) -> None:
    train = runs.write_pictures(tmp_path / "train", 60, first=9000)
    test = runs.write_pictures(tmp_path / "test", 60, first=9500)
    for i in range(5):  # leaks from the probes' training set; from pretraining
        (test / "arc" / f"leak-{i}.png").write_bytes(sorted((train / "arc").iterdir())[i].read_bytes())
    seen_files = sorted((test / "line").iterdir())[:7]
    seen = np.array([_hash(p) for p in seen_files], dtype=np.uint64)
    with mock.patch.dict(os.environ, runs.environment()):
        parts = split(test, train, seen, 16, quiet=True)
    assert parts.protocol["seen_by_pretraining"] == 7
    assert parts.protocol["left_out_as_duplicates"] == 5
    tested = {_hash(test / parts.test.names[i]) for i in parts.test_index}
    taught = {_hash(train / parts.train.names[i]) for i in parts.train_index}
    assert len(parts.test_index) == 65 - 12
    assert not tested & taught
    assert not tested & set(seen.tolist())


def test_split_of_data_that_pretraining_never_saw_uses_halves(tmp_path: Path) -> None:
    other = runs.write_pictures(tmp_path / "other", 120, first=7000)
    with mock.patch.dict(os.environ, runs.environment()):
        parts = split(other, None, np.array([1, 2], dtype=np.uint64), 16, quiet=True)
    assert not set(parts.train_index) & set(parts.test_index)
    assert len(parts.train_index) + len(parts.test_index) == 120
    assert parts.protocol["seen_by_pretraining"] == 0


@pytest.fixture(scope="session", params=["full", "head", "last1"])
def tuned(request: pytest.FixtureRequest, simclr: Path, data: Path) -> tuple[str, Path]:
    out = runs.folder(f"workflow-{request.param}")
    runs.succeed("finetune", simclr, data, "--mode", request.param, "--labels", 10, "--epochs", 2, "--out", out)
    return request.param, out


def test_finetuning_changes_what_its_mode_says(tuned: tuple[str, Path], simclr: Path) -> None:
    mode, out = tuned
    before = load_file(simclr / "encoder" / "encoder.safetensors")
    after = load_file(out / "encoder" / "encoder.safetensors")
    assert sorted(before) == sorted(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    match mode:
        case "full":
            assert {"conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv2.weight"} <= changed
        case "head":
            assert changed == set()
        case "last1":
            assert changed
            assert {name.split(".")[0] for name in changed} == {"layer4"}
    assert set(load_file(out / "encoder" / "head.safetensors")) == {"weight", "bias"}


def test_finetuning_is_measured_beside_training_from_scratch(tuned: tuple[str, Path]) -> None:
    mode, out = tuned
    found = json.loads((out / "finetune.json").read_text())
    rows = {row["features"]: row for row in found["rows"]}
    assert set(rows) == {"pretrained", "from_scratch"}
    assert rows["pretrained"]["measure"] == f"finetune_{mode}"
    assert rows["from_scratch"]["measure"] == "finetune_full"
    for row in rows.values():
        assert set(row) == ROW
        assert row["labels_n"] == 40
        assert row["low"] <= row["value"] <= row["high"]
    steps = [len((p / "log.jsonl").read_text().splitlines()) for p in (out, out / "scratch")]
    assert steps[0] == steps[1], "the two budgets differ"


def test_predictions_name_known_classes_and_agree_in_both_formats(
    tuned: tuple[str, Path], data: Path, tmp_path: Path
) -> None:
    _, out = tuned
    runs.succeed("predict", out, data, "--out", tmp_path / "p.csv")
    runs.succeed("predict", out, data, "--out", tmp_path / "new" / "p.parquet")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == sorted(p.relative_to(data).as_posix() for p in data.rglob("*.png"))
    assert {r["class"] for r in rows} <= {"arc", "ellipse", "line", "rectangle"}
    assert all(0.25 <= float(r["probability"]) <= 1 for r in rows)
    table = pq.read_table(tmp_path / "new" / "p.parquet").to_pydict()
    assert table["name"] == [r["name"] for r in rows]
    assert table["class"] == [r["class"] for r in rows]
    before = (tmp_path / "p.csv").read_bytes()
    assert "exists" in runs.one_line(runs.run("predict", out, data, "--out", tmp_path / "p.csv"), 2)
    assert (tmp_path / "p.csv").read_bytes() == before


def test_embeddings_are_the_features_of_the_bundle(run: Path, data: Path, tmp_path: Path) -> None:
    runs.succeed("embed", run, data, "--out", tmp_path / "f.npy")
    runs.succeed("embed", run / "encoder", data, "--out", tmp_path / "f.parquet")
    features = np.load(tmp_path / "f.npy")
    names = (tmp_path / "f.names.txt").read_text().splitlines()
    bundle = selftaught.load(run)
    assert features.shape == (N + 3, bundle.encoder.width)
    assert features.dtype == np.float32
    pictures = [np.asarray(Image.open(data / name)).transpose(2, 0, 1) for name in names]
    with torch.inference_mode():
        expected = bundle(torch.from_numpy(np.stack(pictures))).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert len(np.unique(features.round(5), axis=0)) > N * 0.9
    table = pq.read_table(tmp_path / "f.parquet")
    assert table["name"].to_pylist() == names
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), features)


def test_report_is_written_again_from_what_lies_there(evaluated: tuple[Path, runs.Result]) -> None:
    run, _ = evaluated
    first = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert runs.succeed("report", run).out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_bytes() == first
    assert b"http-equiv" in first or b"<html" in first


def test_same_command_again_says_that_it_is_complete(run: Path, data: Path) -> None:
    before = runs.files(run, "*.json*", "encoder/*", "checkpoints/*/*")
    task = json.loads((run / "request.json").read_text())["pretext"]
    again = _pretrain(data, task, run)
    assert again.err == f"run '{run}' is complete; nothing to do. Another --out or --seed starts a new one\n"
    assert again.out == f"{run}\n"
    assert runs.files(run, "*.json*", "encoder/*", "checkpoints/*/*") == before


def test_a_recipe_gives_the_same_encoder_elsewhere(run: Path, data: Path, tmp_path: Path) -> None:
    runs.succeed("pretrain", data, "--recipe", run / "recipe.json", "--out", tmp_path / "again")
    same = ("encoder/*", "log.jsonl", "health.jsonl", "recipe.json", "seen.npy", "data.json")
    assert runs.files(tmp_path / "again", *same) == runs.files(run, *same)


def test_a_recipe_says_everything_that_the_options_said(tmp_path: Path) -> None:
    """Pictures larger than the sizes chosen by default, an odd hold-out, a seed, settings: all come from the recipe."""
    data = runs.write_pictures(tmp_path / "large", 48, side=160, first=4000)
    words = ["--encoder", "resnet10_x0.25", "--steps", 2, "--batch", 8, "--size", 128, "--holdout", 0.4, "--seed", 5]
    words += ["--lr", 0.01, "--set", "pretext.temperature=0.2", "--set", "optim.name=sgd"]
    runs.succeed("pretrain", data, *words, "--out", tmp_path / "first")
    runs.succeed("pretrain", data, "--recipe", tmp_path / "first" / "recipe.json", "--out", tmp_path / "second")
    same = ("encoder/*", "log.jsonl", "seen.npy", "recipe.json")
    assert runs.files(tmp_path / "second", *same) == runs.files(tmp_path / "first", *same)


def test_a_recipe_that_was_edited_is_another_request(run: Path, data: Path, tmp_path: Path) -> None:
    """Known failure: the run was called complete, whatever the file said by then."""
    recipe, out = tmp_path / "my.json", tmp_path / "out"
    said = json.loads((run / "recipe.json").read_text())
    recipe.write_text(json.dumps({**said, "train": {**said["train"], "steps": 2}}))
    runs.succeed("pretrain", data, "--recipe", recipe, "--out", out)
    assert "is complete; nothing to do" in runs.succeed("pretrain", data, "--recipe", recipe, "--out", out).err
    recipe.write_text(json.dumps({**said, "train": {**said["train"], "steps": 3}}))
    assert "holds another run (recipe_hash: " in runs.one_line(
        runs.run("pretrain", data, "--recipe", recipe, "--out", out), 2
    )


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    """Known failure: the second cut the first one's logs and removed what it was saving."""
    one, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with one.locked():
        said = r"another process is at work in '.*run'; wait for it, or use another --out"
        with pytest.raises(UserError, match=said), other.locked():
            pass
        with RunFolder(tmp_path / "run", writes=False).locked():  # other ranks of the same run
            pass
    with other.locked():
        assert other.path.is_dir()
    assert list(other.path.iterdir()) == []


def test_what_a_request_that_never_began_left_is_not_the_next_ones(tmp_path: Path) -> None:
    """Known failure: after two kills a run was trained by the recipe of a request before it."""
    run = RunFolder(tmp_path / "run")
    run.begin({"lr": 0.5})
    (run.path / "recipe.json").write_text("{}")
    run.begin({"lr": 0.5})
    assert (run.path / "recipe.json").is_file()
    assert not run.claim({"lr": 0.1})
    run.begin({"lr": 0.1})
    assert not (run.path / "recipe.json").exists()


def test_seed_changes_the_encoder(simclr: Path, data: Path, tmp_path: Path) -> None:
    _pretrain(data, "simclr", tmp_path / "other", "--seed", 1)
    one, two = (load_file(r / "encoder" / "encoder.safetensors") for r in (simclr, tmp_path / "other"))
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])


@pytest.mark.usefixtures("one_thread")
def test_python_gives_what_the_command_line_gives(
    evaluated: tuple[Path, runs.Result], data: Path, tmp_path: Path
) -> None:
    expected, _ = evaluated
    choices: dict[str, Any] = {**SHARED, "encoder": ENCODERS["simclr"], "set": ["train.save_every=3"]}
    out = selftaught.pretrain(data, **choices, out=tmp_path / "run", quiet=True)
    assert out == tmp_path / "run"
    same = ("encoder/*", "log.jsonl", "health.jsonl", "request.json", "recipe.json")
    assert runs.files(out, *same) == runs.files(expected, *same)
    found = selftaught.evaluate(out, str(data), labels=(2, 1.0), draws=2, quiet=True)
    assert json.loads(json.dumps(found)) == json.loads((expected / "evaluation.json").read_text())
    assert selftaught.report(out) == out / "report.html"
    features = selftaught.embed(out, data, out=tmp_path / "f.npy", quiet=True)
    assert np.load(features).shape[0] == N + 3
    tuned = selftaught.finetune(out, data, mode="head", labels=2, epochs=1, scratch=False, quiet=True)
    assert tuned == out / "finetune-head-2"
    assert [r["features"] for r in json.loads((tuned / "finetune.json").read_text())["rows"]] == ["pretrained"]
    assert selftaught.predict(tuned, data, out=tmp_path / "p.csv", quiet=True) == tmp_path / "p.csv"
    assert {row["name"] for row in selftaught.tasks()} >= {"simclr", "mae", "rotation"}


def test_tasks_say_what_they_need_and_cost() -> None:
    rows = selftaught.tasks(cost=True)
    cost = {row["name"]: row["cost"] for row in rows}
    assert cost["simclr"] == "2.0"  # two views, and a small head
    assert cost["rotation"] == "4.0"  # each picture four times
    assert 0.25 < float(cost["mae"]) < 1  # a quarter of the patches, and a small decoder
    assert all(float(each) > 0 for each in cost.values())
    needs = {row["name"]: row["needs"] for row in rows}
    assert (needs["ibot"], needs["two_tower"], needs["tsdae"]) == (
        "a vit_* encoder",
        "a tower_* encoder",
        "a bert_* encoder",
    ), "of two abilities the rarer one"


def test_public_functions_keep_their_names_after_use() -> None:
    for module in pkgutil.iter_modules(selftaught.__path__):
        importlib.import_module(f"selftaught.{module.name}")
    assert {name for name in selftaught.__all__ if getattr(selftaught, name) is not getattr(api, name)} == set()


@pytest.mark.usefixtures("one_thread")
def test_arrays_and_files_of_the_same_pixels_train_the_same_way(data: Path, tmp_path: Path) -> None:
    source = open_data(data, cache=False)
    pixels = source.fetch(np.arange(len(source)))["pixels"].numpy()
    np.save(tmp_path / "pixels.npy", pixels.transpose(0, 2, 3, 1))
    for name, given in (("array", pixels), ("file", tmp_path / "pixels.npy")):
        selftaught.pretrain(given, **SHARED, encoder=ENCODERS["simclr"], out=tmp_path / name, quiet=True)
    same = ("encoder/encoder.safetensors", "log.jsonl")
    assert runs.files(tmp_path / "array", *same) == runs.files(tmp_path / "file", *same)


def test_inspect_counts_what_lies_there(data: Path) -> None:
    said = runs.succeed("inspect", data, "--no-cost")
    assert f"{N + 3} with 3 channels" in said.out
    assert "3 exact copies" in said.out


def test_a_run_that_began_with_weights_needs_them_no_more(data: Path, tmp_path: Path) -> None:
    source, file, run = timm.create_model("resnet18", num_classes=0), tmp_path / "w.safetensors", tmp_path / "run"
    save_file(source.state_dict(), file)
    words = ["--encoder", "resnet18", "--weights", file, "--set", "optim.lr=1e-30", "--steps", 1, "--batch", 8]
    runs.succeed("pretrain", data, *words, "--out", run)
    file.unlink()
    bundle = selftaught.load(run)
    assert torch.equal(bundle.encoder.state_dict()["model.conv1.weight"], source.state_dict()["conv1.weight"])
    runs.succeed("evaluate", run, data, "--labels", 5, "--draws", 2, "--quiet")
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    assert {row["features"] for row in rows} == {"pretrained", "random_init", "raw"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_training_follows_plain_training(data: Path, tmp_path: Path) -> None:
    """In processes of their own: the compiler starts helpers, which a forked interpreter cannot."""
    losses = []
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        words = ["pretrain", data, *runs.ENCODER, "--steps", 4, "--batch", 16, "--set", f"train.compile={compiled}"]
        command = [sys.executable, "-m", "selftaught.cli", *map(str, words), "--out", str(run), "--quiet"]
        subprocess.run(command, check=True, env={**os.environ, **runs.environment()})
        losses.append([json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()])
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-2)
    assert selftaught.load(tmp_path / "true").info["steps"] == 4


def test_inspect_stops_measuring_after_a_while(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual task is measured first, the others as long as there is time."""
    from selftaught.workflow import inspect

    def all_the_time(*_: object) -> dict[str, float]:
        monkeypatch.setattr(inspect, "_MEASURING", 0.0)
        return {"seconds": 1.0}

    monkeypatch.setattr(inspect, "_cost", all_the_time)
    tasks = inspect.inspect(data, None, True, True)["tasks"]
    assert [t["task"] for t in tasks if "seconds" in t] == ["simclr"]
    assert all("not measured" in t["cost"] for t in tasks if t["suits"] and "seconds" not in t)


def test_a_bundle_reads_whole_numbers_alone(simclr: Path) -> None:
    """What ToTensor gives would be taken for nearly black pictures."""
    loaded = selftaught.load(simclr)
    with pytest.raises(
        UserError, match=r"pictures are float32 \[2, 3, 16, 16\], and uint8 \[B, C, H, W\] of 0 to 255 is"
    ):
        loaded(torch.rand(2, 3, 16, 16))
    assert loaded(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, loaded.encoder.width)


def test_a_larger_encoder_to_compare_with_reads_larger_pictures(simclr: Path, tmp_path: Path) -> None:
    data, large = runs.write_pictures(tmp_path / "data", 100, first=9000, side=160), tmp_path / "large"
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, "--size", 128, "--steps", 1, "--batch", 8, "--out", large)
    asked = Asked(against=(str(large),), labels=(1.0,), draws=1, quiet=True)
    sets: list[Any] = []
    with mock.patch.object(evaluation, "readable", lambda parts, found: sets.append((parts, found)) or (parts, found)):
        measured(simclr, data, asked)
    ((parts, found),) = sets
    other = selftaught.load(large)
    source = open_source(data, other.encoder.config.size, quiet=True)
    expected = encode(other.encoder, other.modality, source, parts.test_index, torch.device("cpu"))
    torch.testing.assert_close(found[str(large)][1], expected)


@pytest.mark.parametrize("name", ["pretrained", "random_init", "raw"])
def test_an_encoder_to_compare_with_takes_no_other_rows_place(name: str) -> None:
    with pytest.raises(UserError, match=f"--against {name} would have the name of a row .* write ./{name}"):
        Asked(against=(name,))


def test_what_was_asked_with_arrays_is_told_in_words(simclr: Path) -> None:
    x, y = np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4, np.int64)
    for train in ((x, y), x):
        assert Asked(train=train, draws=2).said() == ["--train", "TRAIN", "--draws", "2"]
    assert Asked().said() == []
    both = Asked(labels=(0.1, 1.0), against=("runs/a", "runs/b")).said()  # as the command line reads them
    assert both == ["--labels", "0.1", "1", "--against", "runs/a", "--against", "runs/b"]
    assert Asked(train="folder").said() == ["--train", "folder"]
