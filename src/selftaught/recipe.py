"""The recipe: one frozen dataclass that says everything about a pretraining run."""

from dataclasses import dataclass
from typing import Any

from selftaught.encoders.base import EncoderConfig
from selftaught.train.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """A complete pretraining run. `selftaught pretrain --recipe recipe.json` starts the same run again.

    general, general_hash: held-out data on which the guard against forgetting looks, where there is one.
    limit: training size, in pixels, that the pictures were stored for; a function of the request and the machine.
    """

    data: str
    data_hash: str
    holdout: float
    limit: int
    kind: str
    modality: dict[str, Any]
    pretext: str
    pretext_config: dict[str, Any]
    encoder: EncoderConfig
    train: TrainConfig
    general: str | None = None
    general_hash: str | None = None
