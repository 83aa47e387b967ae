"""Translation: its loss by the naive formula, decoding with a cache beside none, and a toy language learnt."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.modality.corpus import english

from selftaught.batch import Batch
from selftaught.downstream.translate import TARGET, Translate
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError
from selftaught.losses.tokens import token_cross_entropy
from selftaught.modality.text import TextModality, Tokenizer

TEXTS = [text for text, _ in english()]


def modality(size: int = 16) -> TextModality:
    return TextModality(Tokenizer.train(TEXTS, "wordpiece", 400), size)


def task(**settings: object) -> Translate:
    text = modality()
    config = EncoderConfig("bert_tiny", text.size, 0, vocabulary=text.tokenizer.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Translate(build(config), text, Translate.Config(**settings)).eval()  # type: ignore[arg-type]


def batch(found: Translate, sources: list[str], targets: list[str]) -> Batch:
    given = found.modality.inputs(sources)
    given |= {TARGET + k: x for k, x in found.modality.inputs(targets).items()}
    return Batch(given, torch.arange(len(sources)), seed=0, step=0)


def test_the_loss_is_the_mean_over_target_tokens_with_smoothing() -> None:
    found = task()
    data = batch(found, TEXTS[:6], [t.upper() for t in TEXTS[6:12]])
    target = found.target(data)
    with torch.no_grad():
        loss, metrics = found(data)
        terms = []
        for row in range(6):
            n = int(target.valid[row].sum())
            one = Batch({k: x[row : row + 1] for k, x in data.inputs.items()}, data.index[:1], 0, 0)
            x = F.embedding(target.ids[row : row + 1, : n - 1], found.encoder.embeddings)
            hidden, _ = found.decoder(x, found.read(one))
            p = (hidden[0] @ found.encoder.embeddings.T + found.bias).softmax(1)
            for at, token in enumerate(target.ids[row, 1:n].tolist()):
                even = torch.full((p.shape[1],), 0.1 / p.shape[1])
                even[token] += 0.9
                terms.append(float(-(even * p[at].log()).sum()))
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert 0 <= float(metrics["accuracy"]) <= 1
    assert float(loss) == pytest.approx(math.log(found.modality.tokenizer.vocabulary), rel=0.1)


def test_smoothing_of_no_tokens_is_no_loss() -> None:
    assert float(token_cross_entropy(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), 0.1)) == 0.0


def test_decoding_with_a_cache_gives_the_scores_of_teacher_forcing() -> None:
    found = task(beam=3)
    data = batch(found, TEXTS[:5], TEXTS[5:10])
    with torch.inference_mode():
        ids, scores = found.generate(data)
        last = found.modality.tokenizer.last
        memory = found.read(data)
        shifted = torch.cat([torch.full((5, 1), found.modality.tokenizer.first), ids[:, :-1]], 1)
        hidden, _ = found.decoder(F.embedding(shifted, found.encoder.embeddings), memory)
        logits = F.linear(hidden, found.encoder.embeddings, found.bias).index_fill(2, found.never, -torch.inf)
        logp = logits.log_softmax(2).gather(2, ids[:, :, None])[:, :, 0]
    assert ids.shape == (5, found.modality.size - 1)
    for row in range(5):
        n = ids[row].tolist().index(last) + 1
        assert float(scores[row]) == pytest.approx(float(logp[row, :n].sum()) / n, abs=1e-4)
    assert not set(ids.flatten().tolist()) & set(found.never.tolist())


def test_a_translation_does_not_depend_on_its_neighbours() -> None:
    found = task()
    short = ["a", "the list"]
    data = batch(found, short + TEXTS[:3], short + TEXTS[:3])
    with torch.inference_mode():
        assert found.predict(data)[:2] == found.predict(batch(found, short, short))


def test_it_learns_a_toy_language_and_the_encoder_gets_gradients() -> None:
    found = task(layers=1, dropout=0.0, smoothing=0.0).train()
    words = ["list", "string", "file", "return", "object", "number"]
    sources = [f"{a} {b}" for a in words for b in words]
    targets = [f"{b} {a}" for a in words for b in words]
    data = batch(found, sources, targets)
    optimizer = torch.optim.AdamW(found.parameters(), lr=2e-3)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        found(data).loss.backward()
        optimizer.step()
    assert found.encoder.embeddings.grad is not None
    found.eval()
    with torch.inference_mode():
        right = [a == b for a, b in zip(found.predict(data), targets, strict=True)]
    assert sum(right) >= 34


def test_only_the_decoder_is_trained_when_its_head_is() -> None:
    found = task(mode="head")
    moved = {name.split(".")[0] for name, p in found.named_parameters() if p.requires_grad}
    assert moved == {"decoder", "bias"}
    found.train()
    assert found.frozen
    assert not any(module.training for module in found.frozen)
    depth = found.encoder.depth
    assert found.layer_of("decoder.layers.0.own.query.weight") == depth
    assert found.layer_of("encoder.model.embeddings.word_embeddings.weight") == 0


def test_bad_settings_and_encoders_are_refused() -> None:
    with pytest.raises(UserError, match=r"setting .task\.beam. is 0; it must be 1 or more"):
        Translate.Config(beam=0)
    with pytest.raises(UserError, match="128 wide cannot have 3 heads"):
        task(heads=3)
    text = modality()
    config = EncoderConfig("gpt2_nano", text.size, 0, vocabulary=text.tokenizer.vocabulary)
    with pytest.raises(UserError, match=r"use a bert_\* encoder"):
        Translate(build(config), text, Translate.Config())
