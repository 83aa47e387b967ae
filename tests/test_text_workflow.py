"""The verbs on text, from a folder of .txt to predictions; resumed to the same bits; bad requests in one line."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

import selftaught
from selftaught.batch import Batch
from selftaught.data.texts import from_list
from selftaught.encoders import build
from selftaught.errors import RunStopped
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.modality.text.mask import hide
from selftaught.pretext.mlm import MLM
from selftaught.workflow.export import export
from selftaught.workflow.kinds.texts import Texts
from tests import runs
from tests.modality.corpus import english

SMALL = ("--size", 32, "--set", "text.vocabulary=1000")
BERT = ("--pretext", "mlm", "--encoder", "bert_tiny", *SMALL)
CHECKPOINTS: dict[
    str, dict[str, Any]
] = {  # some that transformers makes; ModernBERT's with and without the optional biases
    "bert": {"model_type": "bert"},
    "modernbert": {"model_type": "modernbert", "local_attention": 8, "pad_token_id": 0},
    "modernbert_biased": {
        "model_type": "modernbert",
        "pad_token_id": None,
        "classifier_bias": True,
        "norm_bias": True,
        "attention_bias": True,
        "classifier_activation": "relu",
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0}},
    },
}


@pytest.fixture(scope="module")
def data() -> Path:
    root = runs.folder("docstrings")
    for i, (text, module) in enumerate(english()):
        (root / module).mkdir(parents=True, exist_ok=True)
        (root / module / f"{i:04d}.txt").write_text(text, "utf-8")
    return root


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = runs.folder("mlm-run")
    runs.succeed("pretrain", data, *BERT, "--steps", 6, "--batch", 16, "--out", out)
    return out


@pytest.fixture(scope="module")
def modern(data: Path) -> Path:
    out = runs.folder("modern-run")
    words = ("--pretext", "mlm", "--encoder", "modernbert_tiny", *SMALL)
    runs.succeed("pretrain", data, *words, "--steps", 6, "--batch", 16, "--out", out)
    return out


def test_a_run_leaves_what_any_run_leaves(run: Path, data: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["kind"], recipe["modality"]["length"], recipe["encoder"]["vocabulary"]) == ("text", 32, 1000)
    facts = json.loads((run / "data.json").read_text())
    assert facts["kind"] == "text"
    assert facts["count"] == len(english()) == facts["train"] + facts["held_out"]
    assert len(np.load(run / "seen.npy")) == facts["train"]
    for folder in (run, run / "encoder"):
        assert (folder / "preprocessing" / "tokenizer.json").is_file()
    bundle = selftaught.load(run)
    assert bundle([english()[0][0], "a"]).shape == (2, 128)
    assert "features = bundle(texts)" in (run / "encoder" / "README.md").read_text()


def test_evaluation_stands_beside_random_initialisation_and_tf_idf(run: Path, data: Path) -> None:
    result = runs.succeed("evaluate", run, data, "--labels", "1", "--draws", "2")
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    predicted = {r["metric"] for r in rows if r["measure"] == "likelihood"}
    assert predicted == {"masked_loss", "pseudo_perplexity"}
    rows = [r for r in rows if r["measure"] != "likelihood"]
    assert {r["features"] for r in rows} == {"pretrained", "random_init", "raw"}
    assert all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in rows)
    assert "Linear probe" in result.out
    assert (run / "report.html").is_file()
    value = {r["features"]: r["value"] for r in rows if r["measure"] == "linear_probe"}
    assert value["raw"] > 0.4  # nine modules: TF-IDF tells them apart, chance does not


def test_finetune_predict_embed_and_inspect(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    runs.succeed("finetune", run, data, "--epochs", "0.5", "--out", out)
    rows = json.loads((out / "finetune.json").read_text())["rows"]
    assert [r["features"] for r in rows] == ["pretrained", "from_scratch"]
    runs.succeed("predict", out, data, "--out", tmp_path / "found.csv")
    assert len((tmp_path / "found.csv").read_text().splitlines()) == len(english()) + 1
    runs.succeed("embed", run, data, "--out", tmp_path / "features.npy")
    features = np.load(tmp_path / "features.npy")
    assert features.shape == (len(english()), 128)
    assert np.isfinite(features).all()
    # A document of one piece has the features that the bundle gives it.
    bundle = selftaught.load(run)
    names = (tmp_path / "features.names.txt").read_text().splitlines()
    found = bundle.modality.tokenizer.encode([(data / name).read_text() for name in names])
    short = [i for i, tokens in enumerate(found) if len(tokens.ids) <= 30][:5]
    assert short
    found = bundle([(data / names[i]).read_text() for i in short]).numpy()
    np.testing.assert_allclose(found, features[short], atol=1e-4)
    audit = selftaught.inspect(str(data), cost=False, quiet=True)
    assert audit["samples"] == len(english())
    assert [t["task"] for t in audit["tasks"] if t["suits"]]


def test_low_rank_finetuning_resumes_and_leaves_an_ordinary_classifier(run: Path, data: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[object]:
        few = [
            "--mode",
            "lora4",
            "--labels",
            5,
            "--epochs",
            4,
            "--batch",
            8,
            "--no-scratch",
            "--set",
            "train.save_every=4",
        ]
        return ["finetune", run, data, *few, "--out", out]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.succeed(*command(whole))
    assert runs.run(*command(broken), kill=("model.safetensors", 3)).code < 0
    runs.succeed(*command(broken))
    same = ("encoder/*", "log.jsonl", "finetune.json", "request.json")
    assert runs.files(broken, *same) == runs.files(whole, *same)
    before, after = (load_torch(folder / "encoder" / "encoder.safetensors") for folder in (run, whole))
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = [f"encoder.layer.{i}.attention.self.{what}.weight" for i in range(2) for what in ("query", "value")]
    assert changed == set(layers)
    runs.succeed("predict", whole, data, "--out", tmp_path / "found.csv")
    assert len((tmp_path / "found.csv").read_text().splitlines()) == len(english()) + 1


def test_modernbert_goes_the_whole_way(modern: Path, data: Path, tmp_path: Path) -> None:
    for pretext in ("simclr", "simcse"):
        words = ("--pretext", pretext, "--encoder", "modernbert_tiny", *SMALL, "--steps", 2, "--batch", 16)
        runs.succeed("pretrain", data, *words, "--out", tmp_path / pretext)
        assert selftaught.load(tmp_path / pretext)(["some text"]).shape == (1, 128)
    rows = selftaught.evaluate(modern, str(data), labels=[1.0], draws=1, quiet=True)["rows"]
    assert {r["features"] for r in rows} == {"pretrained", "random_init", "raw", "unigram"}
    few = ("--labels", 5, "--epochs", 1, "--no-scratch")
    for more in (("--mode", "lora4"), ("--set", "optim.layer_decay=0.75")):
        out = tmp_path / more[1]
        runs.succeed("finetune", modern, data, *few, *more, "--out", out)
        before, after = (load_torch(folder / "encoder" / "encoder.safetensors") for folder in (modern, out))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        adapted = {f"layers.{i}.attn.Wqkv.weight" for i in range(4)}
        assert changed == (adapted if more[1] == "lora4" else set(before))
    goes_on = ("--pretext", "mlm", "--encoder", modern, "--steps", 1, "--batch", 16)
    runs.succeed("pretrain", data, *goes_on, "--out", tmp_path / "on")


def test_a_stopped_run_goes_on_to_the_same_bits(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    words = ("pretrain", data, *BERT, "--steps", 6, "--batch", 16, "--out", out)
    stopped = runs.run(*words, kill=("checkpoints", 1))
    assert stopped.code < 0
    runs.succeed(*words)
    for name in ("encoder/encoder.safetensors", "log.jsonl"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    again = tmp_path / "again"
    runs.succeed("pretrain", data, "--recipe", run / "recipe.json", "--out", again)
    mine, other = load_file(again / "encoder/encoder.safetensors"), load_file(run / "encoder/encoder.safetensors")
    assert all(np.array_equal(mine[n], other[n]) for n in other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pretext", "mae"), "pretext 'mae' works on image, not on text"),
        (("--pretext", "mlm", "--encoder", "resnet18"), "unknown encoder of text 'resnet18'"),
        (("--pretext", "mlm", "--set", "text.tokenizer=words"), "tokenizer 'words' is unknown"),
        (("--pretext", "mlm", "--set", "text.vocabulary=5"), "vocabulary 5 is below 300"),
        (("--pretext", "mlm", "--set", "image.size=5"), "setting 'image.size' is for image data"),
        (("--pretext", "mlm", "--set", "text.vocab=5"), "text.vocab"),
        (("--pretext", "mlm", "--set", "pretext.order=both"), "pretext.order"),
    ],
)
def test_bad_requests(words: tuple[str, ...], message: str, data: Path, tmp_path: Path) -> None:
    result = runs.run("pretrain", data, *words, "--steps", 2, "--out", tmp_path / "run")
    assert message in runs.one_line(result, 2)
    assert not (tmp_path / "run").exists()


def test_pictures_are_no_text(tmp_path: Path) -> None:
    words = ("pretrain", runs.pictures(), "--pretext", "mlm", "--steps", 2, "--out", tmp_path / "run")
    assert "pretext 'mlm' works on text, not on image" in runs.one_line(runs.run(*words), 2)


def test_without_the_extra_text_is_one_line_and_the_rest_works(data: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizers.py").write_text("raise ImportError('not installed')")
    (tmp_path / "transformers.py").write_text("raise ImportError('not installed')")
    environment = {**os.environ, **runs.environment(), "PYTHONPATH": str(tmp_path)}

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "selftaught.cli", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    refused = call("pretrain", data, "--pretext", "mlm", "--steps", 2)
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
        2,
        "selftaught: text needs the extra 'text': pip install 'selftaught[text]'",
    )
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Grüße aus Köln\nein schöner Tag\n".encode("latin-1") * 20)
    (tmp_path / "charset_normalizer.py").write_text("raise ImportError('not installed')")
    refused = call("pretrain", latin, "--pretext", "mlm", "--steps", 2)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1] == "selftaught: text needs the extra 'text': pip install 'selftaught[text]'"
    listed = call("tasks")
    assert listed.returncode == 0
    assert "mlm" in listed.stdout


@pytest.mark.parametrize("which", ["run", "modern"])
def test_the_exported_folder_opens_in_transformers_with_the_same_logits(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    run, out = request.getfixturevalue(which), tmp_path / "exported"
    runs.succeed("export", run, "--out", out)
    bundle = selftaught.load(run)
    head = bundle.encoder.masked_head()
    head.load_state_dict(load_torch(run / "encoder" / "masked_head.safetensors"))
    texts = [text for text, _ in english()][:6]
    tokens = bundle.modality.plain(Batch(bundle.modality.inputs(texts), torch.arange(6), seed=0, step=0))
    theirs = AutoTokenizer.from_pretrained(out)(texts, padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(theirs["input_ids"], tokens.ids)
    model, bare = AutoModelForMaskedLM.from_pretrained(out).eval(), AutoModel.from_pretrained(out).eval()
    asked = {"input_ids": theirs["input_ids"], "attention_mask": theirs["attention_mask"]}
    with torch.no_grad():
        mine = bundle.encoder(tokens).tokens
        logits = head(mine, bundle.encoder.embeddings)
        torch.testing.assert_close(model(**asked).logits[tokens.valid], logits[tokens.valid], rtol=1e-5, atol=1e-5)
        states = bare(**asked).last_hidden_state
        torch.testing.assert_close(states[tokens.valid], mine[tokens.valid], rtol=1e-5, atol=1e-5)
    assert "exists" in runs.one_line(runs.run("export", run, "--out", out), 2)
    pair = AutoTokenizer.from_pretrained(out)("one text", "another")
    assert set(pair.get("token_type_ids", [])) == ({0, 1} if which == "run" else set())


def test_an_export_that_fails_leaves_nothing_behind(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    out = tmp_path / "new" / "exported"
    with monkeypatch.context() as broken:
        full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        broken.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
        with pytest.raises(RunStopped, match=r"disk full while writing '.*exported'; what was saved before is whole"):
            export(run, out)
    assert list(out.parent.iterdir()) == []
    assert export(run, out) == out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("running", ["false", "true"])
def test_a_causal_model_opens_in_transformers(running: str, data: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    words = ("--pretext", "clm", "--encoder", "gpt2_nano", *SMALL, "--set", f"text.running={running}")
    runs.succeed("pretrain", data, *words, "--steps", 2, "--batch", 16, "--out", tmp_path / "run")
    runs.succeed("export", tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "transformers").eval()
    bundle = selftaught.load(tmp_path / "run")
    tokens = bundle.modality.plain(Batch(bundle.modality.inputs([english()[0][0]]), torch.arange(1), seed=0, step=0))
    with torch.no_grad():
        mine = bundle.encoder(tokens).tokens @ bundle.encoder.embeddings.T
        torch.testing.assert_close(model(input_ids=tokens.ids).logits, mine, rtol=1e-5, atol=1e-5)
    # What the folder's tokenizer makes of texts has the features that the bundle gives them.
    texts = [text for text, _ in english()][:6]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "transformers")
    read = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    framed = (read["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    assert framed == (running == "false")
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "run" / "transformers").eval()(**read).last_hidden_state
    there = read["attention_mask"][:, :, None]
    torch.testing.assert_close((states * there).sum(1) / there.sum(1), bundle(texts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_transformers_is_continued(name: str, run: Path, data: Path, tmp_path: Path) -> None:
    """Its logits are unchanged before the first step, its tokenizer is used, and the run stands on its own afterwards."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    folder = tmp_path / "checkpoint"
    runs.succeed("export", run, "--out", folder)  # for its tokenizer
    size = selftaught.load(run).modality.tokenizer.vocabulary
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = AutoConfig.for_model(**CHECKPOINTS[name], **shape, vocab_size=size)
    model = AutoModelForMaskedLM.from_config(config)
    for parameter in model.parameters():  # biases and norms as well
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    theirs = AutoModelForMaskedLM.from_pretrained(folder).eval()

    tokenizer = Tokenizer.load(folder)
    source = from_list([text for text, _ in english()])
    encoder_config = Texts().encoder(str(folder), 32, source, TextModality(tokenizer, 32))
    task = MLM(build(encoder_config), TextModality(tokenizer, 32), MLM.Config()).eval()
    inputs = task.modality.inputs([text for text, _ in english()][:8])
    batch = Batch(inputs, torch.arange(8), seed=0, step=0)
    shown, chosen = hide(task.modality, task.modality.plain(batch), batch, task.config)
    with torch.no_grad():
        mine = task.head(task.encoder(shown).tokens[chosen], task.encoder.embeddings)
        expected = theirs(input_ids=shown.ids, attention_mask=shown.valid.long()).logits[chosen]
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)

    out = tmp_path / "continued"
    words = ("--pretext", "mlm", "--encoder", folder, "--size", 32, "--steps", 2, "--batch", 16)
    runs.succeed("pretrain", data, *words, "--out", out)
    shutil.rmtree(folder)
    assert selftaught.load(out)(["some text"]).shape == (1, 64)
    result = selftaught.evaluate(out, str(data), labels=[1.0], draws=1, quiet=True)
    assert {r["features"] for r in result["rows"]} == {"pretrained", "random_init", "raw", "unigram"}


def test_a_folder_whose_tokenizer_does_not_fit_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "checkpoint"
    runs.succeed("export", run, "--out", folder)
    BertForMaskedLM(
        BertConfig(vocab_size=500, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    ).save_pretrained(folder)
    words = ("pretrain", data, "--pretext", "mlm", "--encoder", folder, "--size", 32, "--steps", 2)
    said = runs.one_line(runs.run(*words, "--out", tmp_path / "run"), 2)
    assert "knows 500 tokens, the tokenizer" in said
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in runs.one_line(runs.run(*words, "--out", tmp_path / "run"), 2)
    (folder / "model.safetensors").unlink()
    shutil.copy(run / "encoder" / "preprocessing" / "tokenizer.json", folder)
    assert "holds no weights" in runs.one_line(runs.run(*words, "--out", tmp_path / "run"), 2)


def test_pictures_are_not_exported_yet(tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs.succeed("pretrain", runs.pictures(), *runs.ENCODER, "--steps", 1, "--batch", 16, "--out", out)
    assert "only encoders of text are exported" in runs.one_line(runs.run("export", out), 2)
