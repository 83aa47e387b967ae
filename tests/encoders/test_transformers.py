"""Encoders of text against transformers itself: packed or padded, the same numbers; and no text sees another."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.contracts.conftest import make
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2Model, ModernBertConfig, ModernBertForMaskedLM

from selftaught.batch import Tokens
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.packing import Packing
from selftaught.encoders.transformers_models import TransformersEncoder, bare_model
from selftaught.encoders.transformers_sizes import SIZES, describe
from selftaught.errors import UserError

CONFIG = EncoderConfig("bert_tiny", 32, 0, options=describe("bert_tiny"), vocabulary=300)
WINDOW = {"local_attention": 8}  # four tokens to each side: less than the longer texts
MODERN = EncoderConfig("modernbert_tiny", 32, 0, options={**describe("modernbert_tiny"), **WINDOW}, vocabulary=300)
BOTH, NAMED = (CONFIG, MODERN), ("bert", "modernbert")
FEW, MANY = (20, 3, 11, 2), tuple(2 + 7 * i % 29 for i in range(20))  # many rows go through attention in groups
LENGTHS = pytest.mark.parametrize("lengths", [FEW, MANY], ids=["few", "many"])


def tokens(lengths: tuple[int, ...] = FEW) -> Tokens:
    g = torch.Generator().manual_seed(0)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 300, valid.shape, generator=g).masked_fill(~valid, 0)
    return Tokens(ids, valid, valid)


def theirs(encoder: TransformersEncoder) -> Any:
    """The same weights in transformers' own padded model."""
    model = bare_model(copy.deepcopy(encoder.model.config), "eager").eval()
    model.load_state_dict(encoder.model.state_dict())
    return model


@LENGTHS
@pytest.mark.parametrize("config", BOTH, ids=NAMED)
def test_packed_is_padded(config: EncoderConfig, lengths: tuple[int, ...]) -> None:
    encoder, x = build(config).eval(), tokens(lengths)
    assert isinstance(encoder, TransformersEncoder)
    found = encoder(x)
    expected = theirs(encoder)(input_ids=x.ids, attention_mask=x.valid.long()).last_hidden_state
    torch.testing.assert_close(found.tokens[x.valid], expected[x.valid], rtol=1e-5, atol=1e-5)
    assert not found.tokens[~x.valid].any()
    means = [row[valid].mean(0) for row, valid in zip(expected, x.valid)]
    torch.testing.assert_close(found.pooled, torch.stack(means), rtol=1e-5, atol=1e-5)


@LENGTHS
@pytest.mark.parametrize("config", BOTH, ids=NAMED)
def test_gradients_are_those_of_the_padded_model(config: EncoderConfig, lengths: tuple[int, ...]) -> None:
    encoder, x = build(config).eval(), tokens(lengths)
    assert isinstance(encoder, TransformersEncoder)
    model = theirs(encoder)
    weight = torch.randn(x.valid.sum(), 128, generator=torch.Generator().manual_seed(1))
    (encoder(x).tokens[x.valid] * weight).sum().backward()
    (model(input_ids=x.ids, attention_mask=x.valid.long()).last_hidden_state[x.valid] * weight).sum().backward()
    for (name, mine), other in zip(encoder.model.named_parameters(), model.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


@LENGTHS
@pytest.mark.parametrize("config", BOTH, ids=NAMED)
def test_no_text_sees_another(config: EncoderConfig, lengths: tuple[int, ...]) -> None:
    encoder, x = build(config).eval(), tokens(lengths)
    before = encoder(x).tokens
    others = x.ids.clone()
    others[1:] = (others[1:] + 7) % 295 + 5
    assert torch.equal(encoder(x._replace(ids=others)).tokens[0], before[0])
    alone = encoder(Tokens(x.ids[:1], x.valid[:1], x.starts[:1])).tokens[0]
    torch.testing.assert_close(alone, before[0], rtol=1e-5, atol=1e-5)


def test_rows_are_grouped_where_that_saves_work() -> None:
    for lengths, groups in ((FEW, 1), (MANY, 8), ((20,) * 20, 1), ((30,) * 3 + (5,) * 17, 8)):
        packing = Packing.of(tokens(lengths).valid)
        assert len(packing.groups) == groups
        assert packing.row().bincount().tolist() == list(lengths)
        assert torch.equal(packing.spread(packing.pack(tokens(lengths).ids)), tokens(lengths).ids)
    widths = [g.valid.shape[1] for g in Packing.of(tokens(MANY).valid).groups]
    assert widths == sorted(widths), "the shortest first"
    assert widths[0] < 10
    assert widths[-1] == 30


def test_modernbert_is_the_published_one_and_texts_longer_than_its_window_are_read_as_transformers_does() -> None:
    size = SIZES["modernbert_base"]
    mine, published = ModernBertConfig(**size).to_dict(), ModernBertConfig().to_dict()
    apart = {name for name in published if mine[name] != published[name]}
    assert apart == {"attention_dropout", *(n for n in published if n.endswith("_token_id"))}
    config = EncoderConfig("modernbert_tiny", 160, 0, options=describe("modernbert_tiny"), vocabulary=300)
    encoder, x = build(config).eval(), tokens((150, 3, 160, 80))
    assert isinstance(encoder, TransformersEncoder)
    model = theirs(encoder)
    asked = {"input_ids": x.ids, "attention_mask": x.valid.long()}
    with torch.no_grad():
        found, expected = encoder(x).tokens[x.valid], model(**asked).last_hidden_state[x.valid]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        model.config.sliding_window = 160
        assert (model(**asked).last_hidden_state[x.valid] - found).abs().max() > 1e-2


def test_modernbert_begins_with_the_weights_that_transformers_draws() -> None:
    config = EncoderConfig("modernbert_mini", 32, 0, options=describe("modernbert_mini"), vocabulary=2000)
    encoder = build(config)
    assert isinstance(encoder, TransformersEncoder)
    mine = {f"model.{n}": t for n, t in encoder.model.state_dict().items()}
    mine |= encoder.masked_head().exported(encoder.embeddings)
    other = ModernBertForMaskedLM(encoder.model.config).state_dict()
    assert set(mine) == set(other)
    for name, value in other.items():
        torch.testing.assert_close(mine[name].std(), value.std(), rtol=0.05, atol=1e-6, msg=name)
        torch.testing.assert_close(mine[name].abs().max(), value.abs().max(), rtol=0.05, atol=1e-6, msg=name)


@pytest.mark.parametrize("pretext", ["electra", "tsdae"])
def test_modernbert_has_neither_generator_nor_decoder(pretext: str) -> None:
    with pytest.raises(UserError, match=r"'modernbert_tiny' cannot; use a bert_\* encoder"):
        make(pretext, "modernbert_tiny")


def test_equally_long_rows_are_encoded_as_packed_ones_are() -> None:
    config = EncoderConfig("gpt2_nano", 32, 0, options=describe("gpt2_nano"), vocabulary=300)
    encoder, x = build(config).eval(), tokens((20, 20, 20))
    longer = Tokens(*(torch.nn.functional.pad(t, (0, 1)) for t in x[:3]))  # a padded column: the packed way
    found, expected = encoder(x), encoder(longer)
    torch.testing.assert_close(found.tokens, expected.tokens[:, :20], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-5, atol=1e-5)
    model = GPT2Model(encoder.model.config).eval()
    model.load_state_dict(encoder.model.state_dict())
    torch.testing.assert_close(found.tokens, model(input_ids=x.ids).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_token_by_token_is_all_at_once() -> None:
    config = EncoderConfig("gpt2_nano", 32, 0, options=describe("gpt2_nano"), vocabulary=300)
    encoder, x = build(config).eval(), tokens((20, 20))
    assert isinstance(encoder, TransformersEncoder)
    memory: dict = {}
    parts = [encoder.follow(x.ids[:, :7], memory)]
    parts += [encoder.follow(x.ids[:, at : at + 1], memory) for at in range(7, 20)]
    torch.testing.assert_close(torch.cat(parts, 1), encoder(x).tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["bert_tiny", "bert_mini", "bert_small", "bert_medium", "modernbert_tiny", "modernbert_mini"]
)
def test_sizes_and_layers(name: str) -> None:
    encoder = build(EncoderConfig(name, 16, 0, options=describe(name), vocabulary=300))
    assert encoder.width == SIZES[name]["hidden_size"]
    layers = {encoder.layer_of(n) for n, _ in encoder.named_parameters()}
    assert layers == set(range(encoder.depth + name.startswith("modern")))  # a norm behind the last layer
    with pytest.raises(UserError, match="cannot skip them"):
        encoder(tokens((4, 4)), torch.zeros(2, 1, dtype=torch.int64))


def test_its_weights_are_a_function_of_the_seed() -> None:
    one, two, three = (build(CONFIG, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], three[n]) for n in one)


def test_a_local_folder_names_the_architecture(tmp_path: Path) -> None:
    """Without running any code that the folder may bring."""
    config = BertConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "auto_map": {"AutoModel": "evil.py--Model"}}))
    options = describe(str(tmp_path))
    assert "auto_map" not in options
    encoder = build(EncoderConfig(str(tmp_path), 128, 0, options=options, vocabulary=300))
    assert (encoder.width, encoder.depth) == (64, 4)


def test_a_folder_of_gpt2_is_read_at_any_size_up_to_its_own(tmp_path: Path) -> None:
    model = GPT2Model(GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    given = {"options": describe(str(tmp_path)), "vocabulary": 300}
    weights = str(tmp_path / "model.safetensors")
    for more in ({}, {"max_position_embeddings": 32}):  # as a run that went on from the folder calls its own size
        options = {**given["options"], **more}
        encoder = build(EncoderConfig(str(tmp_path), 32, 0, options=options, vocabulary=300, weights=weights))
        assert isinstance(encoder, TransformersEncoder)
        assert torch.equal(encoder.model.wpe.weight, model.wpe.weight)
    with pytest.raises(UserError, match="reads at most 64 tokens; use --size"):
        build(EncoderConfig(str(tmp_path), 65, 0, **given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "bert_minni", "options": {}}, "unknown encoder of text 'bert_minni'; did you mean 'bert_mini'"),
        ({"options": {**CONFIG.options, "num_attention_heads": 3}}, "encoder 'bert_tiny' cannot be built"),
        ({"options": {"model_type": "nonsense"}}, "encoder 'bert_tiny' cannot be built"),
        ({"options": {**CONFIG.options, "vocab_size": 100}}, "knows 100 tokens, the tokenizer 300"),
        ({"options": {**CONFIG.options, "max_position_embeddings": 16}}, "reads at most 16 tokens"),
        ({"drop_path": 0.1}, "has no stochastic depth"),
    ],
)
def test_what_cannot_be_built(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(dataclasses.replace(CONFIG, **changes))


def test_layer_norms_of_the_first_berts_are_read(tmp_path: Path) -> None:
    """Their weight was called gamma and their bias beta."""
    config = BOTH[0]
    encoder = build(config, seed=1)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    with torch.no_grad():
        for n, p in encoder.named_parameters():
            if "LayerNorm" in n:
                p.uniform_(0.5, 1.5)
    tensors = {}
    for name, value in encoder.state_dict().items():
        part = ".".join(name.split(".")[-2:])
        tensors[name.removeprefix("model.").removesuffix(part) + old.get(part, part)] = value.clone()
    assert sum("gamma" in name for name in tensors) > 2
    save_file(tensors, tmp_path / "w.safetensors")
    found = build(dataclasses.replace(config, weights=str(tmp_path / "w.safetensors")), seed=2).state_dict()
    assert all(torch.equal(found[name], value) for name, value in encoder.state_dict().items())
