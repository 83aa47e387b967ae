"""generate and fill: the cache changes nothing, draws follow their probabilities, bad requests are one line."""

from pathlib import Path

import pytest
import torch

import selftaught
from selftaught.batch import Batch, Tokens
from selftaught.bundle import masked_head
from selftaught.modality.text import TextModality
from selftaught.workflow.generate import _draw, continuation
from tests import runs
from tests.modality.corpus import english


@pytest.fixture(scope="module")
def corpus() -> Path:
    file = runs.folder("generate") / "docs.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(text for text, _ in english()), "utf-8")
    return file


def pretrained(corpus: Path, name: str, *words: object) -> Path:
    out = corpus.parent / name
    if not out.exists():
        runs.succeed("pretrain", corpus, "--size", 16, "--steps", 3, "--batch", 8, *words, "--out", out)
    return out


@pytest.fixture(scope="module")
def clm(corpus: Path) -> Path:
    return pretrained(corpus, "clm", "--pretext", "clm", "--set", "text.tokenizer=bpe", "--set", "text.vocabulary=400")


@pytest.fixture(scope="module")
def running(corpus: Path) -> Path:
    settings = ("--set", "text.tokenizer=char", "--set", "text.running=true")
    return pretrained(corpus, "running", "--pretext", "clm", *settings)


@pytest.fixture(scope="module")
def mlm(corpus: Path) -> Path:
    return pretrained(corpus, "mlm", "--pretext", "mlm", "--set", "text.vocabulary=500")


@pytest.mark.parametrize("kind", ["clm", "running"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_with_a_cache_it_is_the_same(kind: str, temperature: float, request: pytest.FixtureRequest) -> None:
    """Also past the 16 tokens that the encoder reads at once."""
    loaded = selftaught.load(request.getfixturevalue(kind))
    assert isinstance(loaded.modality, TextModality)
    begun = loaded.modality.tokenizer.encode(["Return"])[0].ids.tolist()
    rest = 40, temperature, 20, 3, torch.device("cpu")
    one = continuation(loaded.encoder, loaded.modality, begun, *rest)
    assert one == continuation(loaded.encoder, loaded.modality, begun, *rest, cached=False)
    if kind == "running":
        assert len(one) == 40


@pytest.mark.parametrize("kind", ["clm", "running"])
def test_no_more_is_read_than_was_trained(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest run of tokens after which pretraining guesses a token of the text."""
    loaded = selftaught.load(request.getfixturevalue(kind))
    modality, encoder = loaded.modality, loaded.encoder
    assert isinstance(modality, TextModality)
    inputs, reads = modality.inputs(["Return the value of it. " * 9]), []
    text = modality.window(Batch(inputs, torch.arange(1), 0, 0), 1)
    trained = 1 + int(modality.maskable(text)[0, 1:].nonzero().max())
    follow = encoder.follow

    def watched(ids: torch.Tensor, memory: dict | None) -> torch.Tensor:
        reads.append(ids.shape[1] + (memory[0][0].shape[2] if memory else 0))
        return follow(ids, memory)  # type: ignore[operator]

    monkeypatch.setattr(encoder, "follow", watched)
    for cached in (True, False):
        for begun in (inputs["ids"][0].tolist(), inputs["ids"][0, : trained - 3].tolist()):
            continuation(encoder, modality, begun, 9, 0.9, None, 1, torch.device("cpu"), cached)
    assert max(reads) == trained


def test_greedy_is_the_likeliest_token_each_time(running: Path) -> None:
    loaded = selftaught.load(running)
    tokenizer = loaded.modality.tokenizer  # type: ignore[attr-defined]
    text = selftaught.generate(running, "Return a", tokens=6, temperature=0)
    assert text.startswith("Return a")
    assert text == selftaught.generate(running, "Return a", tokens=6, temperature=0, seed=5)
    for n in range(8, 14):
        batch = Batch(loaded.modality.inputs([text[:n]]), torch.arange(1), 0, 0)
        hidden = loaded.encoder(loaded.modality.plain(batch)).tokens[0, -1]
        best = (loaded.encoder.embeddings @ hidden).argsort(descending=True).tolist()  # type: ignore[operator]
        special = {tokenizer.pad, tokenizer.unknown, tokenizer.first, tokenizer.mask}
        assert text[n] == tokenizer.decode([next(i for i in best if i not in special)])


def test_draws_follow_their_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], dtype=torch.float64).log()
    drawn = torch.tensor([_draw(logits, 1.0, None, 0, n) for n in range(4000)]).bincount(minlength=5) / 4000
    torch.testing.assert_close(drawn, logits.exp().float(), rtol=0, atol=0.025)
    drawn = torch.tensor([_draw(logits, 0.5, 2, 1, n) for n in range(4000)]).bincount(minlength=5) / 4000
    torch.testing.assert_close(drawn, torch.tensor([0, 0, 0.36, 0.64, 0]), rtol=0, atol=0.025)
    assert _draw(logits, 0.0, None, 0, 0) == 3
    assert [_draw(logits, 1.0, None, 7, n) for n in range(9)] == [_draw(logits, 1.0, None, 7, n) for n in range(9)]


def test_from_the_command_line(clm: Path, mlm: Path) -> None:
    found = runs.succeed("generate", clm, "Return the", "--tokens", 5, "--top-k", 10, "--seed", 2)
    assert found.out.startswith("Return the")
    assert found.out == runs.succeed("generate", clm, "Return the", "--tokens", 5, "--top-k", 10, "--seed", 2).out
    shown = runs.succeed("fill", mlm, "Return the [MASK] of the [MASK].", "--k", 3).out
    assert shown.split()[:3] == ["mask", "token", "probability"]
    assert len(shown.splitlines()) == 7


def test_fill_gives_the_models_probabilities(mlm: Path) -> None:
    rows = selftaught.fill(mlm, "Return the [MASK] of it", k=500)
    loaded = selftaught.load(mlm)
    tokenizer = loaded.modality.tokenizer  # type: ignore[attr-defined]
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
    tokens = loaded.modality.plain(Batch(loaded.modality.inputs(["Return the [MASK] of it"]), torch.arange(1), 0, 0))
    at = tokens.ids[0].tolist().index(tokenizer.mask)
    head = masked_head(mlm, loaded)
    logits = head(loaded.encoder(tokens).tokens[0, at][None], loaded.encoder.embeddings)[0]
    assert rows[0]["token"] == tokenizer.backend.id_to_token(int(logits.argmax()))
    assert rows[0]["probability"] == pytest.approx(float(logits.softmax(0).max()), rel=1e-5)


def test_a_gap_has_no_space_of_its_own_before_it(corpus: Path) -> None:
    """Where the space belongs to the next word's token, as in pretraining."""
    settings = ("--set", "text.tokenizer=bpe", "--set", "text.vocabulary=400")
    run = pretrained(corpus, "mlm-bpe", "--pretext", "mlm", *settings)
    loaded = selftaught.load(run)
    assert isinstance(loaded.modality, TextModality)
    t = loaded.modality.tokenizer
    before, after = (found.ids.tolist() for found in t.encode(["Return the", " of it"]))
    ids = torch.tensor([[t.first, *before, t.mask, *after, t.last]])
    every = torch.ones_like(ids, dtype=torch.bool)
    head = masked_head(run, loaded)
    hidden = loaded.encoder(Tokens(ids, every, every)).tokens[0, 1 + len(before)]
    logits = head(hidden[None], loaded.encoder.embeddings)[0]
    row = selftaught.fill(run, "Return the [MASK] of it", k=1)[0]
    assert row["probability"] == pytest.approx(float(logits.softmax(0).max()), rel=1e-5)
    assert row["token"] == t.spelled(int(logits.argmax()))


def test_bad_requests(clm: Path, mlm: Path) -> None:
    def refused(*words: object) -> str:
        return runs.one_line(runs.run(*words), 2)

    assert "the prompt is empty; give at least one character" in refused("generate", clm, "")
    assert "was pretrained with mlm, which cannot continue a text; use a run of --pretext clm" in refused(
        "generate", mlm, "a"
    )
    assert "was pretrained with clm, which predicts no hidden tokens" in refused("fill", clm, "a [MASK]")
    assert "the text holds no [MASK]; write [MASK] where" in refused("fill", mlm, "a text")
    assert "at most 14; shorten it" in refused("fill", mlm, "a [MASK] " + "b " * 20)
    assert "--temperature -1 must be 0" in refused("generate", clm, "a", "--temperature", -1)
    assert "--top-k 0 is not above 0" in refused("generate", clm, "a", "--top-k", 0)
    assert "is no run folder" in refused("fill", clm.parent / "nowhere", "a [MASK]")
