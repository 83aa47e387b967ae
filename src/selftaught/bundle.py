"""The encoder bundle: what is left of a run, and all that evaluation, fine-tuning and other tools load.

encoder/
    encoder.safetensors   weights, by timm's own names where the architecture is timm's
    config.json           architecture, preprocessing, and where it comes from
    README.md             the model card
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught import __version__
from selftaught.batch import Batch
from selftaught.disk import appearing, write_json, write_text
from selftaught.encoders import Encoder, EncoderConfig, build
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.settings import from_json, load_json, to_json

WEIGHTS = "encoder.safetensors"
PREPROCESSING = "preprocessing"
"""Folder, in a run or a bundle, of the files that belong to the preprocessing (a tokenizer)."""


@dataclass(frozen=True)
class Bundle:
    """An encoder in evaluation mode, its preprocessing, and what is known of it."""

    encoder: Encoder
    modality: Modality
    info: dict[str, Any]

    def __call__(self, samples: Tensor | Sequence[Any]) -> Tensor:
        """Features [B, width] of pictures uint8 [B, C, H, W], texts (their first tokens) or histories of ids.

        Computed where the encoder is (`bundle.encoder.to("cuda")`), and left there.
        """
        inputs = self.modality.inputs(samples)
        batch = Batch(inputs, torch.arange(len(samples)), seed=0, step=0)
        with torch.inference_mode():
            batch = batch.to(next(self.encoder.parameters()).device)
            return self.encoder(self.modality.plain(batch)).pooled


def is_there(folder: Path) -> bool:
    """Whether a whole bundle lies in `folder`: it appears at once."""
    return (folder / "config.json").is_file()


def modality_from_json(kind: str, data: dict[str, Any], folder: Path | None = None) -> Modality:
    """The preprocessing that `Modality.to_json` described, of one kind of data; its files lie in `folder`."""
    try:
        there = [] if folder is None or kind == "image" else [p for p in folder.iterdir() if p.is_file()]
        files = {p.name: p.read_text("utf-8") for p in there}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{folder}' cannot be read: {error}") from error
    return modality_of(kind, data, files)


def modality_of(kind: str, data: dict[str, Any], files: dict[str, str]) -> Modality:
    """The same from the files' texts, by name."""
    if kind == "image":
        from selftaught.modality.image import ImageModality

        return ImageModality.from_json(data)
    if kind not in ("text", "event"):
        raise UserError(f"kind of data '{kind}' is unknown to this version; known: image, text, event")
    if kind == "event":
        from selftaught.modality.event import EventModality

        return EventModality.from_json(data, files)
    from selftaught.modality.text import TextModality
    from selftaught.modality.text.running import RunningText

    return (RunningText if data.get("running") else TextModality).from_json(data, files)


def write_files(folder: Path, modality: Modality) -> None:
    """Write the files that belong to a preprocessing, if any, into `folder`/preprocessing."""
    for name, text in modality.files().items():
        (folder / PREPROCESSING).mkdir(exist_ok=True)
        write_text(folder / PREPROCESSING / name, text)


def save(
    folder: Path,
    encoder: Encoder,
    modality: Modality,
    info: dict[str, Any],
    tensors: dict[str, Tensor],
    extra: dict[str, dict[str, Tensor]] | None = None,
) -> None:
    """Write a bundle beside its place and swap it in; `tensors` is the encoder's state (EMA or gathered from shards).

    extra: further .safetensors files by name, such as a classifier's head. RunStopped on a full disk.
    """
    bare = {name.removeprefix("model."): t.detach().cpu().contiguous() for name, t in tensors.items()}
    config = {
        "selftaught": __version__,
        "kind": modality.name,
        "encoder": to_json(encoder.config),
        "width": encoder.width,
        "modality": modality.to_json(),
        **info,
    }
    with appearing(folder, replace=True) as temporary:
        for name, group in {WEIGHTS: bare, **(extra or {})}.items():
            save_file(group, temporary / name, metadata={"format": "pt"})
        write_files(temporary, modality)
        write_json(temporary / "config.json", config)
        write_text(temporary / "README.md", _card(config))


def find(path: Path) -> Path:
    """The bundle's folder for a run folder, a bundle, or one of its files' folder; UserError where there is none."""
    if path.is_file():
        raise UserError(f"'{path}' is a file; name a run folder or an encoder bundle (a pickle is never opened)")
    for folder in (path / "encoder", path):
        if is_there(folder) and (folder / WEIGHTS).is_file():
            return folder
    if (path / "request.json").is_file():
        raise UserError(f"run '{path}' has no encoder yet; type its pretrain command again to finish it")
    raise UserError(f"'{path}' is no run folder and no encoder bundle")


def architecture(path: Path) -> EncoderConfig:
    """What the encoder of a run folder or bundle is, without its weights."""
    return _architecture(load_json(find(path) / "config.json"))


def _architecture(config: dict[str, Any]) -> EncoderConfig:
    return from_json(EncoderConfig, config.get("encoder"), "encoder")


def load(path: Path) -> Bundle:
    """Load the encoder of a run folder or bundle, on the CPU, in evaluation mode."""
    folder = find(path)
    config = load_json(folder / "config.json")
    encoder_config = _architecture(config)
    # The weights come from the bundle, so neither the hub nor the file they once came from is asked again.
    encoder = build(encoder_config.bare())
    try:
        tensors = load_file(folder / WEIGHTS)
        encoder.load_state_dict({f"model.{name}": value for name, value in tensors.items()})
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"'{folder / WEIGHTS}' does not fit its config.json: {str(error).splitlines()[0]}") from error
    return Bundle(
        encoder.eval().requires_grad_(False),
        modality_from_json(config.get("kind", "?"), config.get("modality", {}), folder / PREPROCESSING),
        config,
    )


def masked_head(path: Path, loaded: Bundle) -> Any:
    """What predicts hidden tokens, by (tokens [n, D], embeddings [V, D]) -> logits [n, V]; None where a bundle has none."""
    file = find(path) / "masked_head.safetensors"
    if not file.is_file():
        return None
    encoder: Any = loaded.encoder
    head = encoder.masked_head()
    try:
        head.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"'{file}' does not fit the encoder: {str(error).splitlines()[0]}") from error
    return head.eval().requires_grad_(False)


def _card(config: dict[str, Any]) -> str:
    encoder = config["encoder"]
    size, ids = encoder["size"], encoder["vocabulary"]
    what, name, form = {
        "image": (f"pictures: {size} px, {encoder['channels']} channels", "pixels", "uint8 [B, C, H, W]"),
        "text": (f"text: at most {size} tokens, of a vocabulary of {ids}", "texts", "list of str"),
        "event": (
            f"histories: at most {size} events, with {ids - 2} items",
            "histories",
            "lists of item ids, oldest first",
        ),
    }[config["kind"]]
    lines = [
        f"# {encoder['name']}, pretrained with {config.get('pretext', '?')}",
        "",
        f"- {what}",
        f"- features: {config['width']} numbers a sample",
        f"- steps: {config.get('steps')}, batch: {config.get('batch')}, seed: {config.get('seed')}",
        f"- data: `{config.get('data')}`, hash `{config.get('data_hash')}`",
        f"- trained with {config.get('threads')} CPU threads and {config.get('world')} ranks; the same bits need the same",
        "",
        "```python",
        "import selftaught",
        'bundle = selftaught.load("PATH")',
        f"features = bundle({name})  # {form} -> float32 [B, width]",
        "```",
        "",
        f"`{'ranking' if name == 'histories' else 'evaluation'}.json`, which `evaluate` writes, says what pretraining was worth.",
        "",
    ]
    return "\n".join(lines)
