"""Views of text: what stays, what may go, and that they are functions of (seed, step, stream, sample)."""

import dataclasses

import pytest
import torch
from tests.modality.corpus import texts

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.modality.text import TextModality, TextView, Tokenizer


@pytest.fixture(scope="module")
def modality() -> TextModality:
    return TextModality(Tokenizer.train(texts(), "wordpiece", 1000), 40)


@pytest.fixture(scope="module")
def batch(modality: TextModality) -> Batch:
    return Batch(modality.inputs(["", "a", *texts()[:60]]), torch.arange(62), seed=2, step=3)


def test_plain_is_the_text_between_its_specials(modality: TextModality, batch: Batch) -> None:
    found, t = modality.plain(batch), modality.tokenizer
    for row, text in enumerate(["", "a", *texts()[:60]]):
        ids = t.encode([text])[0].ids.tolist()[:38]
        assert found.ids[row][found.valid[row]].tolist() == [t.first, *ids, t.last]
        assert (found.ids[row][~found.valid[row]] == t.pad).all()
    assert modality.maskable(found).sum(1).tolist() == (found.valid.sum(1) - 2).tolist()


def test_a_view_is_a_run_of_the_text(modality: TextModality, batch: Batch) -> None:
    whole, view = modality.plain(batch), modality.view(batch, TextView(crop=(0.3, 0.8)), stream=1)
    for row in range(len(batch)):
        ids, cut = whole.ids[row][whole.valid[row]].tolist(), view.ids[row][view.valid[row]].tolist()
        assert (cut[0], cut[-1]) == (ids[0], ids[-1])
        inner, run = ids[1:-1], cut[1:-1]
        assert len(run) <= max(1, -(-len(inner) * 8 // 10))
        assert any(inner[i : i + len(run)] == run for i in range(len(inner) - len(run) + 1))
        assert len(run) >= min(1, len(inner))


def test_left_out_tokens(modality: TextModality, batch: Batch) -> None:
    whole, view = modality.plain(batch), modality.view(batch, TextView(drop=0.5), stream=1)
    kept = (view.valid.sum(1) - 2).sum() / (whole.valid.sum(1) - 2).sum()
    assert 0.42 < kept < 0.58
    assert ((view.valid.sum(1) > 2) == (whole.valid.sum(1) > 2)).all()
    everything = modality.view(batch, TextView(drop=0.999), stream=1)
    assert everything.valid.sum(1).tolist() == [2] + [3] * 61


def test_a_view_depends_on_its_keys_alone(modality: TextModality, batch: Batch) -> None:
    strong = modality.contrastive_view()
    one = modality.view(batch, strong, stream=1)
    rows = torch.tensor([40, 7])
    part = Batch({k: v[rows] for k, v in batch.inputs.items()}, batch.index[rows], batch.seed, batch.step)
    some = modality.view(part, strong, stream=1)
    for i, row in enumerate(rows.tolist()):
        assert torch.equal(some.ids[i][some.valid[i]], one.ids[row][one.valid[row]])
    assert not torch.equal(one.ids, modality.view(batch, strong, stream=2).ids)
    assert not torch.equal(one.ids, modality.view(dataclasses.replace(batch, step=4), strong, stream=1).ids)


def test_it_survives_being_saved(modality: TextModality, batch: Batch) -> None:
    again = TextModality.from_json(modality.to_json(), modality.files())
    assert torch.equal(again.plain(batch).ids, modality.plain(batch).ids)


def test_bad_settings(modality: TextModality) -> None:
    with pytest.raises(UserError, match=r"view\.crop is \(0\.5, 2\.0\)"):
        TextView(crop=(0.5, 2.0))
    with pytest.raises(UserError, match=r"view\.drop is 1\.0"):
        TextView(drop=1.0)
    with pytest.raises(UserError, match="length 4 is below 8 tokens"):
        TextModality(modality.tokenizer, 4)
    with pytest.raises(UserError, match="text preprocessing is"):
        TextModality.from_json({"length": 10}, modality.files())
    with pytest.raises(UserError, match=r"has .* tokens, the encoder 7"):
        TextModality.from_json({"length": 10, "vocabulary": 7}, modality.files())
