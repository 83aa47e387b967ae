"""Likelihoods against naive double-precision loops, bits per byte by hand, and evaluate on text without labels."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import runs
from tests.modality.corpus import english

from selftaught.batch import Batch, Tokens
from selftaught.data.texts import from_list
from selftaught.data.tokens import TokenSource, tokenized
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.transformers_models import describe
from selftaught.evaluation import likelihood as measure
from selftaught.evaluation.intervals import ratio
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.modality.text.running import RunningText

SIZE = 16
TEXTS = [text for text, _ in english()][:12]


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([text for text, _ in english()], "char", 300)


def encoder_of(name: str):
    config = EncoderConfig(name, SIZE, 0, options=describe(name), vocabulary=tokenizer().vocabulary)
    return build(config).eval().requires_grad_(False)


def whole_of(modality: TextModality, texts: list[str]) -> TokenSource:
    return tokenized(from_list(texts), modality.tokenizer, modality.room, None, lambda done, total: None)


def found_totals(guess, pieces: TokenSource, rows, owner, documents: int, base) -> measure.Totals:
    keys = {"seed": 0, "device": torch.device("cpu"), "progress": lambda done: None}
    return measure.totals(guess, pieces, rows, owner, documents, base, **keys)


def naive_nats(encoder, ids: list[int], at: int) -> float:
    """-log p(ids[at] | ids before it), in double precision."""
    before = torch.tensor([ids[:at]])
    every = torch.ones_like(before, dtype=torch.bool)
    hidden = encoder(Tokens(before, every, every)).tokens[0, -1].double()
    return float(-torch.log_softmax(encoder.embeddings.double() @ hidden, 0)[ids[at]])


@pytest.mark.parametrize("running", [False, True])
def test_next_tokens_are_the_formula(running: bool) -> None:
    modality = (RunningText if running else TextModality)(tokenizer(), SIZE)
    encoder, texts = encoder_of("gpt2_nano"), [text[:40] for text in TEXTS[:4]]
    whole = whole_of(modality, texts)
    base = measure.unigram(whole.counts(np.arange(4), tokenizer().vocabulary))
    pieces, owner = whole.cut(np.arange(4), int(running))
    guess = functools.partial(measure.next_tokens, encoder, modality)
    found = found_totals(guess, pieces, np.arange(len(pieces)), owner, 4, base)
    t = tokenizer()
    for document, text in enumerate(texts):
        ids = t.encode([text])[0].ids.tolist()
        assert found.tokens[document] == len(ids) - running
        assert found.unigram[document] == pytest.approx(float(base[ids[int(running) :]].sum()))
        nats = 0.0
        for piece in np.flatnonzero(owner == document):
            part = pieces.fetch(np.array([piece]))["ids"][0].tolist()
            read = part if running else [t.first, *part]
            nats += sum(naive_nats(encoder, read, at) for at in range(1, len(read)))
        assert found.model[document].item() == pytest.approx(nats, rel=1e-5)


def test_hidden_in_turn_is_the_formula() -> None:
    modality, encoder = TextModality(tokenizer(), SIZE), encoder_of("bert_tiny")
    head = encoder.masked_head().eval().requires_grad_(False)
    whole = whole_of(modality, TEXTS[:3])
    pieces, owner = whole.cut(np.arange(3))
    first = np.unique(owner, return_index=True)[1]
    base = torch.zeros(tokenizer().vocabulary, dtype=torch.float64)
    guess = functools.partial(measure.each_in_turn, encoder, head, modality)
    found = found_totals(guess, pieces, first, owner[first], 3, base)
    for document, piece in enumerate(first):
        text = modality.plain(Batch(pieces.fetch(np.array([piece])), torch.arange(1), 0, 0))
        nats = 0.0
        for at in range(1, text.ids.shape[1] - 1):
            ids = text.ids.clone()
            ids[0, at] = tokenizer().mask
            logits = head(encoder(text._replace(ids=ids)).tokens[0, at][None], encoder.embeddings)[0].double()
            nats -= float(torch.log_softmax(logits, 0)[text.ids[0, at]])
        assert found.tokens[document] == text.ids.shape[1] - 2
        assert found.model[document].item() == pytest.approx(nats, rel=1e-5)


def test_fifteen_per_cent_are_hidden_and_the_same_ones_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    modality, encoder = TextModality(tokenizer(), SIZE), encoder_of("bert_tiny")
    head = encoder.masked_head().eval().requires_grad_(False)
    pieces, owner = whole_of(modality, TEXTS).cut(np.arange(len(TEXTS)))
    base = measure.unigram(np.zeros(tokenizer().vocabulary, np.int64))
    guess = functools.partial(measure.hidden_tokens, encoder, head, modality)
    parts = guess, pieces, np.arange(len(pieces)), owner, len(TEXTS), base
    one = found_totals(*parts)
    monkeypatch.setattr(measure, "_TOKENS", 40)
    for x, y in zip(one, found_totals(*parts), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    expected = sum(max(1, round(0.15 * (n + 2))) for n in pieces.lengths.tolist())
    assert one.tokens.sum() == expected
    assert (one.unigram / one.tokens).tolist() == pytest.approx([math.log(tokenizer().vocabulary)] * len(TEXTS))


def test_bits_per_byte_by_hand() -> None:
    """Two documents of 10 and 30 bytes, coded in 20 and 30 bits."""
    nats = torch.tensor([20.0, 30.0], dtype=torch.float64) * math.log(2)
    totals = measure.Totals(torch.tensor([4.0, 6.0]), nats, nats * 2)
    size = torch.tensor([10.0, 30.0], dtype=torch.float64)
    mine, base = measure.measured("bits_per_byte", totals, size, 0, math.log(2))
    assert mine["value"] == pytest.approx(50 / 40)
    assert base["value"] == pytest.approx(100 / 40)
    assert (mine["low"], mine["high"]) == pytest.approx((1.0, 2.0))
    assert mine["against"]["unigram"][0] == pytest.approx(-50 / 40)
    (perplexity, _) = measure.as_perplexity(measure.measured("loss", totals, totals.tokens, 0), "pseudo_perplexity")
    assert perplexity["value"] == pytest.approx(2**5)


def test_the_interval_covers_what_it_should() -> None:
    """Documents of unequal length and unequal difficulty: 95 % intervals hold the truth in about 95 % of cases."""
    g = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(200):
        weight = torch.randint(5, 50, (60,), generator=g).double()
        rate = 2 + torch.randn(60, generator=g).double() * 0.5
        _, low, high = ratio(rate * weight, weight, seed=seed)
        hits += low <= 2 <= high
    assert 180 <= hits <= 198


def test_words_of_the_verdict() -> None:
    def said(model: list[float]) -> str:
        tokens = torch.full((4,), 10.0, dtype=torch.float64)
        totals = measure.Totals(tokens, torch.tensor(model).double(), torch.full((4,), 20.0).double())
        return measure.verdict(measure.measured("loss", totals, tokens, 0))[0]

    assert said([9, 10, 11, 10]).startswith("the model predicts tokens better than their frequencies do: loss 1.000 [")
    assert said([39, 40, 41, 40]).startswith("the model predicts tokens worse")
    assert said([10, 30, 10, 30]).startswith("no proof that the model")


@pytest.mark.parametrize("pretext", ["clm", "mlm"])
def test_evaluate_without_labels(pretext: str, tmp_path: Path) -> None:
    file, run = tmp_path / "corpus.txt", tmp_path / "run"
    file.write_text("\n".join(text.replace("\n", " ") for text, _ in english()), "utf-8")
    words = ("--pretext", pretext, "--size", 16, "--steps", 2, "--batch", 8, "--set", "text.vocabulary=500")
    runs.succeed("pretrain", f"{file}?split=line", *words, "--out", run)
    result = runs.succeed("evaluate", run, f"{file}?split=line")
    assert "has no labels, which probes need" in result.err
    assert "drops something of the text" in result.err
    found = json.loads((run / "evaluation.json").read_text())
    metrics = {"clm": {"loss", "bits_per_byte"}, "mlm": {"masked_loss", "pseudo_perplexity"}}[pretext]
    assert {(r["metric"], r["features"]) for r in found["rows"]} == {
        (m, f) for m in metrics for f in ("pretrained", "unigram")
    }
    assert all(r["low"] <= r["value"] <= r["high"] for r in found["rows"])
    protocol = found["protocol"]["likelihood"]
    assert protocol["documents"] == json.loads((run / "data.json").read_text())["held_out"]
    assert protocol["unigram"] == "token frequencies of the documents that pretraining saw"
    assert found["verdict"]
    assert metrics <= {m for m in metrics if m.replace("_", " ") in (run / "report.html").read_text()}
    (tmp_path / "few.txt").write_text("one line\nand another\n")
    said = runs.one_line(runs.run("evaluate", run, f"{tmp_path}/few.txt?split=line", "--quiet"), 2)
    assert "only 2 documents are unseen by pretraining; at least 5 are needed" in said
