"""Running text: windows from anywhere, each place alike often, no special tokens; and a run of clm on one file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import runs
from tests.modality.corpus import english, texts

import selftaught
from selftaught.batch import Batch
from selftaught.data.texts import from_list
from selftaught.data.tokens import TokenSource, tokenized
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.transformers_models import describe
from selftaught.errors import UserError
from selftaught.modality.text import TextView, Tokenizer
from selftaught.modality.text.running import RunningText
from selftaught.pretext.clm import CLM
from selftaught.pretext.mlm import MLM

SIZE = 12


@pytest.fixture(scope="module")
def modality() -> RunningText:
    return RunningText(Tokenizer.train(texts(), "char", 300), SIZE)


def pieces(modality: RunningText, documents: list[str]) -> tuple[TokenSource, np.ndarray]:
    source = from_list(documents)
    whole = tokenized(source, modality.tokenizer, modality.room, None, lambda done, total: None)
    return whole.windows(np.arange(len(source)))


def batch_of(source: TokenSource, index: np.ndarray, step: int = 0) -> Batch:
    return Batch(source.fetch(index), torch.from_numpy(index), 0, step)


def test_windows_begin_everywhere_alike_often(modality: RunningText) -> None:
    long, short = "".join(map(chr, range(ord("a"), ord("z") + 1))) + "ABCDEFGHIJKLMNOPQRSTUVW", "abc"
    source, owner = pieces(modality, [long, short])
    assert owner.tolist() == [0, 0, 0, 0, 1]
    assert (source.lengths <= 2 * SIZE).all()
    begins = dict.fromkeys(range(len(long) - SIZE), 0)
    for step in range(400):
        found = modality.window(batch_of(source, np.arange(len(source)), step), 1)
        assert found.valid.sum(1).tolist() == [SIZE + 1] * 4 + [3]
        for row in range(4):
            begins[long.index(modality.tokenizer.decode(found.ids[row].tolist()))] += 1
    drawn = np.array(list(begins.values()))  # 1600 windows at 37 places
    assert drawn.min() > 15
    assert drawn.max() < 85
    assert modality.tokenizer.decode(found.ids[4][found.valid[4]].tolist()) == short


def test_plain_and_views_hold_no_special_token(modality: RunningText) -> None:
    source, _ = pieces(modality, texts()[:20])
    batch = batch_of(source, np.arange(len(source)))
    whole = modality.plain(batch)
    t = modality.tokenizer
    assert whole.valid.sum(1).max() == SIZE
    assert not torch.isin(whole.ids[whole.valid], torch.tensor([t.pad, t.first, t.last, t.mask])).any()
    assert torch.equal(modality.maskable(whole), whole.valid)
    view = modality.view(batch, TextView(crop=(0.5, 0.8), drop=0.3), stream=1)
    assert (view.valid.sum(1) >= 1).all()
    assert (view.valid.sum(1) <= (whole.valid.sum(1) * 0.8).ceil()).all()
    part = batch_of(source, np.array([5, 2]))
    alone = modality.window(part, 1)
    together = modality.window(batch, 1)
    assert torch.equal(alone.ids[0][alone.valid[0]], together.ids[5][together.valid[5]])


def test_the_loss_is_that_of_the_windows_tokens(modality: RunningText) -> None:
    size = modality.tokenizer.vocabulary
    config = EncoderConfig("gpt2_nano", SIZE, 0, options=describe("gpt2_nano"), vocabulary=size)
    task = CLM(build(config), modality, CLM.Config()).eval()
    source, _ = pieces(modality, texts()[:8])
    batch = batch_of(source, np.arange(len(source)))
    text = modality.window(batch, 1)
    table = task.encoder.embeddings.double()  # type: ignore[operator]
    total = []
    for ids, valid in zip(text.ids, text.valid):
        row = ids[valid][None]
        every = torch.ones_like(row[:, :-1], dtype=torch.bool)
        hidden = task.encoder(text._replace(ids=row[:, :-1], valid=every, starts=every)).tokens[0].double()
        total += (-torch.log_softmax(hidden @ table.T, 1).gather(1, row[0, 1:, None])[:, 0]).tolist()
    assert abs(task(batch).loss.item() - np.mean(total)) < 1e-5


def test_it_is_for_clm_and_is_saved(modality: RunningText) -> None:
    config = EncoderConfig(
        "bert_tiny", SIZE, 0, options=describe("bert_tiny"), vocabulary=modality.tokenizer.vocabulary
    )
    with pytest.raises(UserError, match=r"'mlm' needs texts that begin and end; leave out text\.running"):
        MLM(build(config), modality, MLM.Config())
    again = RunningText.from_json(modality.to_json(), modality.files())
    assert again.to_json() == modality.to_json()


def test_one_file_is_learnt_from_in_windows(tmp_path: Path) -> None:
    """What a user types; and the same bits when the same recipe runs again."""
    file = tmp_path / "docs.txt"
    text = "\n\n".join(text for text, _ in english())
    file.write_text(text, "utf-8")
    words = ("--pretext", "clm", "--size", 32, "--steps", 3, "--batch", 8)
    words += ("--set", "text.tokenizer=char", "--set", "text.running=true")
    runs.succeed("pretrain", f"{file}?split=file", *words, "--out", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["bytes"] == len(text.encode())
    assert facts["count"] > 10
    bundle = selftaught.load(tmp_path / "run")
    assert isinstance(bundle.modality, RunningText)
    assert bundle(["Return the", "b"]).shape == (2, 128)
    runs.succeed(
        *("pretrain", f"{file}?split=file", "--recipe", tmp_path / "run/recipe.json", "--out", tmp_path / "again")
    )
    assert (tmp_path / "again/log.jsonl").read_bytes() == (tmp_path / "run/log.jsonl").read_bytes()
