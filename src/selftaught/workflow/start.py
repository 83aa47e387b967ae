"""A run that goes on from an earlier one of ours: its encoder, its preprocessing and what it kept of its heads."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from selftaught import bundle
from selftaught.encoders import EncoderConfig
from selftaught.encoders.files import read_tensors
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.settings import from_json, load_json


class Start(NamedTuple):
    """What --encoder RUN brings: the encoder with its weights, and the preprocessing it was trained with."""

    encoder: EncoderConfig
    modality: Modality


def _folder(name: str) -> Path | None:
    """The bundle's folder where `name` is a run folder or a bundle; UserError for a run that has none yet."""
    path = Path(name)
    ours = any((path / file).is_file() for file in ("request.json", bundle.WEIGHTS, f"encoder/{bundle.WEIGHTS}"))
    return bundle.find(path) if ours else None


def size_of(name: str) -> int | None:
    """Training size of the run or bundle called `name`; None where it is neither."""
    folder = _folder(name)
    return None if folder is None else _config(folder).size


def _config(folder: Path) -> EncoderConfig:
    return from_json(EncoderConfig, load_json(folder / "config.json").get("encoder"), "encoder")


def start_of(name: str, kind: str, size: int | None, settings: dict[str, Any]) -> Start | None:
    """What the run or bundle called `name` brings to data of a kind; None where it is neither.

    size: of what is now read; None: the size it was trained at. settings: what --set says of the kind of data, which is
    the earlier run's to say.
    """
    folder = _folder(name)
    if folder is None:
        return None
    said = load_json(folder / "config.json")
    if said.get("kind") != kind:
        raise UserError(f"'{name}' is an encoder of {said.get('kind')} data, and this is {kind}")
    if settings:
        raise UserError(f"setting '{kind}.{next(iter(settings))}' is that of '{name}', which goes on; leave it out")
    config = _config(folder)
    modality = bundle.modality_from_json(kind, said.get("modality", {}), folder / bundle.PREPROCESSING)
    if config.vocabulary:  # its table of positions keeps its length, whatever is read now
        config = replace(config, options={"max_position_embeddings": config.size, **config.options})
    if size is not None:
        modality.size = size
        config = replace(config, size=size)
    weights = str((folder / bundle.WEIGHTS).resolve())
    return Start(replace(config.bare(), weights=weights, bundled=True), modality)


def take_heads(task: Any, config: EncoderConfig) -> None:
    """Fill the heads of a task that its encoder's bundle kept, so that what they had learnt is not lost."""
    if not config.bundled or config.weights_file is None:
        return
    for name, part in task.kept.items():
        file = config.weights_file.with_name(f"{name}.safetensors")
        if file.is_file():
            try:
                getattr(task, part).load_state_dict(read_tensors(file))
            except RuntimeError as error:
                raise UserError(f"'{file}' does not fit this task: {str(error).splitlines()[0]}") from error
