"""Encoders: stems that fit, visible tokens only, weights from files and from a hub's cache on this disk."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from selftaught.encoders import EncoderConfig, build, choose, named
from selftaught.encoders.build import load_weights
from selftaught.encoders.timm_models import SMALL, ViTEncoder, patch_for
from selftaught.errors import UserError


@pytest.mark.parametrize("name", [*SMALL, "resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("size", [32, 96])
def test_any_encoder_gives_tokens_and_pooled_features(name: str, size: int) -> None:
    encoder = build(EncoderConfig(name, size, channels=1)).eval()
    out = encoder(torch.randn(2, 1, size, size))
    assert out.pooled.shape == (2, encoder.width)
    assert out.tokens.shape[0] == 2
    assert out.tokens.shape[2] == encoder.token_width
    layers = {encoder.layer_of(n) for n, _ in encoder.named_parameters()}
    assert layers <= set(range(encoder.depth + 1))
    assert len(layers) > 3


@pytest.mark.parametrize(("size", "cells"), [(28, 16), (32, 16), (64, 16), (224, 49)])
def test_resnet_stem_fits_the_picture(size: int, cells: int) -> None:
    assert build(EncoderConfig("resnet18", size))(torch.randn(1, 3, size, size)).tokens.shape[1] == cells


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 96, 100, 224])
def test_patches_tile_the_picture(size: int) -> None:
    assert size % patch_for(size) == 0


def test_keep_encodes_the_named_patches_only() -> None:
    encoder = build(EncoderConfig("vit_micro", 32)).eval()
    x = torch.randn(3, 3, 32, 32)
    every = torch.arange(64).expand(3, 64)
    torch.testing.assert_close(encoder(x, every).tokens, encoder(x).tokens)
    keep = torch.stack([torch.randperm(64)[:16] for _ in range(3)])
    hidden = x.clone()
    for row in range(3):  # what is not kept cannot matter
        for patch in set(range(64)) - set(keep[row].tolist()):
            top, left = patch // 8 * 4, patch % 8 * 4
            hidden[row, :, top : top + 4, left : left + 4] = 9.0
    torch.testing.assert_close(encoder(x, keep).tokens, encoder(hidden, keep).tokens, rtol=0, atol=0)
    with pytest.raises(UserError, match="cannot skip masked tokens"):
        build(EncoderConfig("resnet10_x0.25", 32))(x, keep)


def test_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = (build(EncoderConfig("resnet10_x0.25", 32), seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(before, torch.random.get_rng_state())
    other = build(EncoderConfig("resnet10_x0.25", 32), seed=2).state_dict()
    assert not torch.equal(one["model.conv1.weight"], other["model.conv1.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.encoder."])
def test_weights_from_a_local_file(tmp_path: Path, suffix: str, prefix: str) -> None:
    source = timm.create_model("resnet18", num_classes=10)
    tensors = {prefix + k: v for k, v in source.state_dict().items()}
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": tensors}, file)
    else:
        save_file(tensors, file)
    encoder = build(EncoderConfig("resnet18", 224, weights=str(file)))
    assert torch.equal(encoder.state_dict()["model.conv1.weight"], source.state_dict()["conv1.weight"])


def test_weights_of_a_transformer_for_another_picture_size(tmp_path: Path) -> None:
    """As timm's own reader makes them fit; a file of another width is refused."""
    options: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    source = timm.create_model("vit_tiny_patch16_224", img_size=96, **options)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    target = timm.create_model("vit_tiny_patch16_224", img_size=64, **options)
    expected = checkpoint_filter_fn(source.state_dict(), target)["pos_embed"]
    encoder = ViTEncoder(EncoderConfig("vit_tiny_patch16_224", 64), target)
    load_weights(encoder, tmp_path / "w.safetensors")
    assert torch.equal(encoder.state_dict()["model.pos_embed"], expected)
    wider = timm.create_model("vit_tiny_patch16_224", img_size=96, **{**options, "embed_dim": 64})
    with pytest.raises(UserError, match="do not fit encoder"):
        load_weights(ViTEncoder(EncoderConfig("vit_tiny_patch16_224", 96), wider), tmp_path / "w.safetensors")


class Payload:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    file, trace = tmp_path / "evil.pth", tmp_path / "executed"
    torch.save({"state_dict": Payload(str(trace))}, file)
    with pytest.raises(UserError, match=r"refused|cannot be read"):
        build(EncoderConfig("resnet18", 224, weights=str(file)))
    file.write_bytes(pickle.dumps(Payload(str(trace))))
    with pytest.raises(UserError, match=r"refused|cannot be read"):
        build(EncoderConfig("resnet18", 224, weights=str(file)))
    assert not trace.exists()


def test_weights_that_end_too_early_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"\x80\x02")
    with pytest.raises(UserError, match=r"weights '.*w.pth' cannot be read: "):
        build(EncoderConfig("resnet18", 224, weights=str(tmp_path / "w.pth")))


def test_a_page_in_the_place_of_weights_is_called_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n")
    with pytest.raises(UserError, match="is no file of weights; is it a Git-LFS pointer"):
        build(EncoderConfig("resnet18", 224, weights=str(tmp_path / "w.pth")))


def test_weights_of_before_batch_norm_counted_its_batches(tmp_path: Path) -> None:
    source = timm.create_model("resnet18", num_classes=0)
    tensors = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "w.safetensors")
    encoder = build(EncoderConfig("resnet18", 224, weights=str(tmp_path / "w.safetensors")))
    own = encoder.state_dict()
    assert len(tensors) < len(own)
    assert all(torch.equal(own[f"model.{name}"], value) for name, value in tensors.items())


def test_an_encoder_that_does_not_fit_the_size_is_refused_and_one_that_can_be_made_to_is_made() -> None:
    with pytest.raises(UserError, match="encoder 'inception_v3' cannot be built for 32 px: "):
        build(EncoderConfig("inception_v3", 32))
    assert build(EncoderConfig("mixer_s32_224", 64))(torch.randn(2, 3, 64, 64)).tokens.shape[1] == 4


def test_bad_requests_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown encoder 'resnt18'; did you mean 'resnet18'"):
        build(EncoderConfig("resnt18", 32))
    with pytest.raises(UserError, match="size 4 is below 8"):
        build(EncoderConfig("resnet18", 4))
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="do not fit encoder 'resnet18'") as error:
        build(EncoderConfig("resnet18", 224, weights=str(tmp_path / "w.safetensors")))
    assert "\n" not in str(error.value)


def test_hub_names_read_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hf:owner/repo` through the real download code, offline, against a cache as the hub's client lays it out."""
    source = timm.create_model("resnet10t", num_classes=0)
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--me--tiny" / "refs").mkdir()
    (tmp_path / "models--me--tiny" / "refs" / "main").write_text("0")
    save_file(source.state_dict(), snapshot / "model.safetensors")
    config = {"architecture": "resnet10t", "num_classes": 0, "num_features": 512, "pretrained_cfg": {}}
    (snapshot / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encoder = build(named("hf:me/tiny", 64))
    assert torch.equal(encoder.state_dict()["model.conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    random = build(encoder.config.bare()).state_dict()  # asks no hub
    assert {k: v.shape for k, v in random.items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    assert not torch.equal(random["model.conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    with pytest.raises(UserError, match="'hf:me/tiny' cannot be read as a timm model"):
        named("hf:me/tiny", 64)


@pytest.mark.parametrize("name", [*(n for n in SMALL if n.startswith("resnet")), "resnet18"])
def test_the_stem_fits_the_pictures(name: str) -> None:
    """3 x 3 at full resolution up to 48 px, with stride 2 up to 112, and the published one beyond."""
    for size, kernel, stride in ((32, 3, 1), (96, 3, 2), (224, 7, 2)):
        stem = build(EncoderConfig(name, size)).get_submodule("model.conv1")
        assert (stem.kernel_size, stem.stride) == ((kernel, kernel), (stride, stride))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_weights_decide_the_architecture_and_outlive_their_file(tmp_path: Path, name: str) -> None:
    """A published stem or patch stays when its weights are gone, and is not what is built from nothing."""
    source = timm.create_model(name, num_classes=0)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    config = EncoderConfig(name, 32, weights=str(tmp_path / "w.safetensors"))
    shapes = {k: v.shape for k, v in build(config).state_dict().items()}
    (tmp_path / "w.safetensors").unlink()
    assert {k: v.shape for k, v in build(config.bare()).state_dict().items()} == shapes
    assert config.bare().bare() == config.bare()
    assert {k: v.shape for k, v in build(EncoderConfig(name, 32)).state_dict().items()} != shapes


def test_choice_fits_machine_and_task() -> None:
    assert choose(32, "cpu") == "resnet10_x0.5"
    assert choose(32, "cpu", frozenset({"keep"})) == "vit_micro"
    assert choose(224, "cuda") == "resnet50"


def test_a_vit_reads_a_token_in_the_place_of_hidden_patches() -> None:
    encoder = build(EncoderConfig("vit_micro", 16, 1)).eval()
    x, token = torch.randn(3, 1, 16, 16), torch.randn(encoder.token_width)
    none = torch.zeros(3, encoder.grid[0] * encoder.grid[1], dtype=torch.bool)
    assert torch.equal(encoder(x, hide=(none, token)).tokens, encoder(x).tokens)
    some = none.clone()
    some[:, 0] = True
    other = x.clone()
    other[:, :, : encoder.patch, : encoder.patch] += 5
    assert torch.equal(encoder(x, hide=(some, token)).tokens, encoder(other, hide=(some, token)).tokens)
    assert not torch.allclose(encoder(x, hide=(some, token)).tokens, encoder(x).tokens)


def test_a_vit_by_another_name_is_built_for_its_pictures() -> None:
    """Known failure: flexivit had the grid of 240 px, and mae on it ended after the last step with nothing."""
    encoder = build(EncoderConfig("flexivit_small", 48, 3)).eval()
    assert isinstance(encoder, ViTEncoder)
    assert encoder.grid == (3, 3)
    assert encoder(torch.randn(1, 3, 48, 48), keep=torch.tensor([[0, 4]])).tokens.shape[1] == 2


@pytest.mark.parametrize("name", ["coat_tiny", "pit_ti_224", "vit_tiny_r_s16_p8_224"])
def test_networks_that_are_no_encoder_are_refused_in_words(name: str) -> None:
    with pytest.raises(UserError, match=f"encoder '{name}' cannot be built for 224 px"):
        build(EncoderConfig(name, 224, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 4}, "did you mean 'encoder.options.levels'"),
        ({"heads": 0}, "'encoder.options.heads' is 0; it must be a whole number of 1 or more"),
        ({"side": "12"}, "'encoder.options.side' is '12'; it must be a whole number"),
        ({"levels": 2.5}, "'encoder.options.levels' is 2.5; it must be a whole number"),
        ({"mean": [0.5]}, "it must be 3 numbers, one a channel"),
    ],
)
def test_options_of_an_igpt_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(EncoderConfig("igpt_nano", 32, 3, options=options))


@pytest.mark.parametrize("name", ["maxvit_pico_rw_256", "coatnet_pico_rw_224", "levit_128s"])
def test_a_network_of_one_size_does_not_say_that_it_reads_others(name: str) -> None:
    """Known failure: multi-crop was given to them, and ended in a traceback at the first local view."""
    encoder = build(EncoderConfig(name, 64, 3)).eval()
    assert "sizes" not in encoder.abilities
    with pytest.raises((AssertionError, RuntimeError)):
        encoder(torch.randn(1, 3, 48, 48))


@pytest.mark.parametrize("name", ["vit_micro", "resnet10_x0.25", "vit_tiny_patch16_224"])
def test_sizes_other_than_its_own_are_read(name: str) -> None:
    """A ViT resamples its positions; an encoder built for the other size, given these, says the same."""
    encoder = build(EncoderConfig(name, 32, 3)).eval()
    assert "sizes" in encoder.abilities
    x = torch.randn(2, 3, 16, 16)
    found = encoder(x)
    assert found.pooled.shape == (2, encoder.width)
    if encoder.patch:
        other = build(EncoderConfig(name, 16, 3)).eval()
        if other.patch == encoder.patch:
            other.load_state_dict(other.adapted(encoder.state_dict()))
            torch.testing.assert_close(other(x).pooled, found.pooled)


def test_a_distilled_vit_reads_other_sizes_with_both_of_its_tokens() -> None:
    encoder = build(EncoderConfig("deit_tiny_distilled_patch16_224", 224, 3, published=True)).eval()
    assert encoder(torch.randn(2, 3, 96, 96)).tokens.shape[1] == 36


@pytest.mark.parametrize(
    ("name", "size", "rows"),
    [("resnet10_x0.25", 32, 4), ("resnet18", 96, 6), ("vit_micro", 32, 8), ("mobilenetv3_small_050", 96, 3)],
)
def test_tokens_of_a_picture_lie_in_a_grid(name: str, size: int, rows: int) -> None:
    encoder = build(EncoderConfig(name, size, 3), 0)
    assert encoder.grid == (rows, rows)
    assert encoder.eval()(torch.zeros(1, 3, size, size)).tokens.shape[1] == rows**2
