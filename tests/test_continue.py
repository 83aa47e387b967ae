"""Going on from weights: from an earlier run to the bit, guarded against forgetting, and bad checkpoints in one line each."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import selftaught
from selftaught.data import open_data
from selftaught.recipe import Recipe
from selftaught.settings import from_json
from selftaught.workflow.plan import build_task
from selftaught.workflow.pretrain import _with_earlier
from tests import runs
from tests.modality.corpus import english

LESS = ("--steps", 4, "--batch", 16)


def _texts(root: Path, part: int) -> Path:
    """Half of the docstrings, in class folders."""
    for i, (text, module) in enumerate(english()):
        if i % 2 == part:
            (root / module).mkdir(parents=True, exist_ok=True)
            (root / module / f"{i:04d}.txt").write_text(text, "utf-8")
    return root


@pytest.fixture(scope="module")
def data() -> Path:
    return _texts(runs.folder("continue-texts"), 0)


@pytest.fixture(scope="module")
def general() -> Path:
    return _texts(runs.folder("continue-general"), 1)


@pytest.fixture(scope="module")
def first(general: Path) -> Path:
    """A run on the general texts."""
    out = runs.folder("continue-first")
    words = ("--pretext", "mlm", "--encoder", "bert_tiny", "--size", 32, "--set", "text.vocabulary=1000")
    runs.succeed("pretrain", general, *words, *LESS, "--out", out)
    return out


@pytest.fixture(scope="module")
def guarded(first: Path, data: Path, general: Path) -> Path:
    """One that goes on from it, so fast that it forgets."""
    out = runs.folder("continue-guarded")
    result = runs.succeed(*_guarded(first, data, general, out))
    assert "ALARM: step 4: forgetting: the loss on general data is" in result.err
    return out


def _guarded(first: Path, data: Path, general: Path, out: Path) -> list[object]:
    more = ["--lr", 0.5, "--set", "train.health_every=1", "--set", "train.save_every=2"]
    return ["pretrain", data, "--pretext", "mlm", "--encoder", first, "--general", general, *LESS, *more, "--out", out]


def _weights(run: Path, name: str = "encoder") -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / f"{name}.safetensors")


def test_a_run_of_text_goes_on_with_its_weights_head_and_tokenizer(first: Path, guarded: Path) -> None:
    recipe = from_json(Recipe, json.loads((guarded / "recipe.json").read_text()))
    task = build_task(recipe, selftaught.load(first).modality)
    for name, given in _weights(first).items():
        assert torch.equal(task.encoder.state_dict()[f"model.{name}"], given), name
    for name, given in _weights(first, "masked_head").items():
        assert torch.equal(task.head.state_dict()[name], given), name
    tokenizer = Path("encoder/preprocessing/tokenizer.json")
    assert (guarded / tokenizer).read_bytes() == (first / tokenizer).read_bytes()
    assert selftaught.load(guarded)(["some text"]).shape == (1, 128)


def test_what_the_earlier_run_saw_is_seen(first: Path, guarded: Path, tmp_path: Path) -> None:
    """No test may hold what any run behind an encoder was trained on; where that is unknown, it is said."""
    seen, earlier = np.load(guarded / "seen.npy"), np.load(first / "seen.npy")
    own = seen[: json.loads((guarded / "data.json").read_text())["train"]]
    assert set(seen.tolist()) == set(own.tolist()) | set(earlier.tolist())
    assert len(set(seen.tolist())) > len(set(own.tolist()))
    shutil.copytree(first / "encoder", tmp_path / "copy" / "encoder")
    recipe = from_json(Recipe, json.loads((guarded / "recipe.json").read_text()))
    weights = str(tmp_path / "copy" / "encoder" / "encoder.safetensors")
    alone = dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, weights=weights))
    said: list[str] = []
    np.testing.assert_array_equal(_with_earlier(own, alone, said.append), own)
    assert "has no seen.npy: what it was trained on is unknown" in said[0]


def test_the_guard_keeps_what_it_saw(guarded: Path) -> None:
    rows = [json.loads(line) for line in (guarded / "retention.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 4]
    assert rows[0]["neighbours_kept"] == 1
    assert rows[1]["neighbours_kept"] < 1
    assert rows[1]["rise_low"] > 0.02
    assert all(len(r["general_losses"]) > 1 and 0 <= r["general_knn"] <= 1 for r in rows)
    (alarm,) = [
        json.loads(line) for line in (guarded / "alarms.jsonl").read_text().splitlines() if "forgetting" in line
    ]
    assert alarm["step"] == 4
    recipe = json.loads((guarded / "recipe.json").read_text())
    assert recipe["general_hash"]
    page = selftaught.report(guarded).read_text("utf-8")
    for words in ("loss on general data", "loss on the domain", "neighbours kept", "forgetting"):
        assert words in page


def test_a_guarded_run_resumes_to_the_same_bits(
    guarded: Path, first: Path, data: Path, general: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    words = _guarded(first, data, general, out)
    assert runs.run(*words, kill=("tmp-step-00000004", 1)).code < 0
    assert (out / "checkpoints" / "step-00000002").is_dir()
    runs.succeed(*words)
    same = ("encoder/encoder.safetensors", "log.jsonl", "alarms.jsonl", "retention.*")
    assert runs.files(out, *same) == runs.files(guarded, *same)
    again = tmp_path / "again"
    runs.succeed("pretrain", data, "--recipe", guarded / "recipe.json", "--out", again)
    assert (again / "retention.jsonl").read_bytes() == (guarded / "retention.jsonl").read_bytes()


def test_learned_weights_are_gone_on_from_gently(first: Path, data: Path, tmp_path: Path) -> None:
    """The same rate a tenth as high, and said so; where the user gives one, that one without a word."""
    rates = {}
    for name, words in (("own", ()), ("asked", ("--lr", 2e-3)), ("set", ("--set", "optim.lr=3e-3"))):
        out = tmp_path / name
        said = runs.succeed("pretrain", data, "--pretext", "mlm", "--encoder", first, *words, *LESS, "--out", out).err
        rates[name] = json.loads((out / "recipe.json").read_text())["train"]["optim"]["lr"]
        assert ("a tenth of what fresh ones get; --lr changes it" in said) == (name == "own")
    fresh = json.loads((first / "recipe.json").read_text())["train"]["optim"]["lr"]
    assert rates == {"own": pytest.approx(fresh / 10), "asked": 2e-3, "set": 3e-3}


def test_a_run_of_pictures_goes_on(tmp_path: Path) -> None:
    data, other = runs.pictures(), runs.write_pictures(tmp_path / "other", 120, first=9000)
    first, second = tmp_path / "first", tmp_path / "second"
    runs.succeed("pretrain", data, "--encoder", "resnet18", "--steps", 2, "--batch", 16, "--out", first)
    words = ("--encoder", first, "--general", other, "--steps", 2, "--batch", 16, "--lr", 1e-5, "--out", second)
    result = runs.succeed("pretrain", data, *words)
    assert "forgetting" not in result.err
    rows = [json.loads(line) for line in (second / "retention.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 2]
    assert rows[1]["neighbours_kept"] > 0.5
    before, after = _weights(first), _weights(second)
    assert max(float((before[n] - after[n]).abs().max()) for n in before if n.endswith("conv1.weight")) < 1e-3
    image = np.zeros((2, 3, 16, 16), np.uint8)
    assert selftaught.load(second)(torch.from_numpy(image)).shape == (2, 512)
    grey = runs.folder("continue-grey")
    np.save(grey.with_suffix(".npy"), np.random.default_rng(0).integers(0, 255, (100, 16, 16), np.uint8))
    words = ("--encoder", first, "--general", grey.with_suffix(".npy"), "--steps", 2, "--out", tmp_path / "third")
    assert "have 1 channels, but" in runs.one_line(runs.run("pretrain", data, *words), 2)


def test_what_cannot_be_guarded_or_continued(first: Path, data: Path, general: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        line = runs.one_line(
            runs.run("pretrain", data, "--pretext", "mlm", *words, *LESS, "--out", tmp_path / "run"), 2
        )
        assert not (tmp_path / "run").exists()
        return line

    assert "this run begins with random ones; name weights" in refused("--general", general)
    assert "is image data, and the run's is text" in refused("--encoder", first, "--general", runs.pictures())
    assert "holds nothing but samples that pretraining trains on" in _same_data(first, general, tmp_path)
    few = tmp_path / "few.txt"
    few.write_text("\n".join(text.replace("\n", " ") for text, _ in english()[:20]))
    assert "it needs 64 or more" in refused("--encoder", first, "--general", few)
    assert "setting 'text.vocabulary' is that of" in refused("--encoder", first, "--set", "text.vocabulary=500")
    assert "reads at most 32 tokens; use --size" in refused("--encoder", first, "--size", 64)
    assert "is a folder; --encoder goes on from a folder" in refused("--encoder", "bert_tiny", "--weights", first)
    assert "both name weights" in refused("--encoder", first, "--weights", first)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "request.json").write_text("{}")
    assert "has no encoder yet; type its pretrain command again" in refused("--encoder", unfinished)
    words = ("pretrain", runs.pictures(), "--encoder", first, *LESS, "--out", tmp_path / "run")
    assert "is an encoder of text data, and this is image" in runs.one_line(runs.run(*words), 2)


def _same_data(first: Path, general: Path, tmp_path: Path) -> str:
    """General data that is a part of DATA's training part."""
    seen, source = np.load(first / "seen.npy"), open_data(general)
    part = tmp_path / "part"
    part.mkdir()
    for name, key in zip(source.names, source.hashes, strict=True):
        if key in seen:
            shutil.copy(general / name, part / Path(name).name)
    words = ("pretrain", general, "--pretext", "mlm", "--encoder", first, "--general", part, *LESS)
    return runs.one_line(runs.run(*words, "--out", tmp_path / "same"), 2)


def test_broken_bundles_are_one_line(first: Path, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(first / "encoder", broken)
    words = ("pretrain", data, "--pretext", "mlm", "--encoder", broken, *LESS, "--out", tmp_path / "run")
    head = broken / "masked_head.safetensors"
    save_file({"bias": torch.zeros(3)}, head)
    assert "does not fit this task" in runs.one_line(runs.run(*words), 2)
    head.unlink()
    (broken / "encoder.safetensors").write_bytes(b"garbage")
    assert "cannot be read" in runs.one_line(runs.run(*words), 2)


def _checkpoint(first: Path, folder: Path) -> Path:
    """A small checkpoint as transformers saves it, with the tokenizer of a run."""
    from transformers import BertConfig, BertForMaskedLM

    folder.mkdir()
    shutil.copy(first / "encoder" / "preprocessing" / "tokenizer.json", folder)
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    size = selftaught.load(first).modality.tokenizer.vocabulary
    BertForMaskedLM(BertConfig(vocab_size=size, **shape)).save_pretrained(folder)
    return folder


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, **changes}))

    return change


def _tokens(extra: int) -> Callable[[Path], None]:
    """A tokenizer with one more token, of an id that leaves others out."""

    def change(folder: Path) -> None:
        said = json.loads((folder / "tokenizer.json").read_text())
        said["model"]["vocab"]["zyzzyva"] = len(said["model"]["vocab"]) + extra
        (folder / "tokenizer.json").write_text(json.dumps(said))

    return change


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model": selftaught.load}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_tokens(0), "tokens, the tokenizer"),
        (_tokens(500), "tokens, the tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json; save it with"),
        (_write("tokenizer.json", b"\xff\xfe{}"), "is no tokenizer: 'utf-8' codec can't decode"),
        (_write("tokenizer.json", b"{}"), "is no tokenizer"),
        (_write("model.safetensors", b"garbage that is no header"), "model.safetensors' cannot be read"),
        (_pickled, "is a pickle that holds more than tensors; refused"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights; it needs model.safetensors or"),
        (_write("config.json", b"[1, 2]"), "is of model_type 'None', which is not supported; known: bert, gpt2"),
        (_write("config.json", b"{not json"), "config.json' is not JSON"),
        (lambda folder: (folder / "config.json").unlink(), "unknown encoder of text"),
        (_config(model_type="roberta"), "is of model_type 'roberta', which is not supported; known: bert"),
        (_config(model_type="own", auto_map={"AutoModel": "evil.py--Model"}), "is of model_type 'own'"),
        (_config(hidden_size=65), "cannot be built"),
        (_config(hidden_size=32), "tensors missing or of another shape"),
        (_config(vocab_size="many"), "cannot be built: Validation error for field 'vocab_size'"),
        (_config(max_position_embeddings=16), "reads at most 16 tokens; use --size"),
    ],
)
def test_a_broken_checkpoint_is_one_line(
    spoil: Callable[[Path], None], message: str, first: Path, data: Path, tmp_path: Path
) -> None:
    folder = _checkpoint(first, tmp_path / "checkpoint")
    spoil(folder)
    words = ("pretrain", data, "--pretext", "mlm", "--encoder", folder, "--size", 32, *LESS, "--out", tmp_path / "run")
    assert message in runs.one_line(runs.run(*words), 2)
    assert not (tmp_path / "run").exists()


def test_code_that_a_checkpoint_names_is_never_run(first: Path, data: Path, tmp_path: Path) -> None:
    """auto_map of a known architecture is passed over; a file beside it is not imported."""
    folder, mark = _checkpoint(first, tmp_path / "checkpoint"), tmp_path / "executed"
    _config(auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})(folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    words = ("pretrain", data, "--pretext", "mlm", "--encoder", folder, "--size", 32, *LESS, "--out", tmp_path / "run")
    runs.succeed(*words)
    assert not mark.exists()
