"""What every downstream task is: the shape of a pretext task, and predictions."""

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from selftaught.batch import Batch, Step
from selftaught.downstream import lora
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.modality.base import Modality


class Downstream(nn.Module, ABC):
    """An encoder, a head for the task, and the supervised loss; trained by the same loop as pretext tasks.

    config: frozen dataclass of the task's settings. mode: what of the encoder is trained (see `freeze`).
    """

    splits_batch: ClassVar[bool] = True
    supervised: ClassVar[bool] = True
    config: Any

    def __init__(self, encoder: Encoder, modality: Modality, mode: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.modality = modality
        self.frozen = freeze(encoder, mode)

    @abstractmethod
    def forward(self, batch: Batch) -> Step:
        """Loss and metrics of a labelled batch."""

    @abstractmethod
    def predict(self, batch: Batch) -> Any:
        """Predictions for a batch, without randomness."""

    def train(self, mode: bool = True) -> "Downstream":
        """Frozen layers stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def layer_of(self, name: str) -> int:
        """Depth of the parameter called `name` for layer-wise decay; the head is as deep as the encoder's output."""
        within = name.removeprefix("encoder.")
        return self.encoder.depth if within == name else self.encoder.layer_of(within)

    def before_step(self, progress: float) -> None:  # as above
        """Nothing: all that is trained is trained from the first step on."""

    def after_step(self, progress: float) -> None:  # the loop calls it for every task
        """Nothing to do after a step."""


def freeze(encoder: Encoder, mode: str) -> list[nn.Module]:
    """Freeze what `mode` says: "full" nothing, "head" the encoder, "lastK" all but its last K blocks, "loraR" all but
    corrections of rank R ("lora": 8) that its attention is given.

    Returns the modules that are wholly frozen, with the dropout in them: they must stay in evaluation mode, or BatchNorm would
    still move, and a head learn on noise.
    """
    if mode == "full":
        return []
    found = re.fullmatch(r"(head|last|lora)(\d*)", mode)
    what, number = found.groups() if found else ("", "")
    if what == "lora":
        lora.adapt(encoder, int(number) if number else lora.RANK)
    elif (what == "head" and not number) or (what == "last" and int(number or 0) > 0):
        first = encoder.depth - int(number) if number else encoder.depth + 1
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(encoder.layer_of(name) >= first)
    else:
        raise UserError(
            f"mode '{mode}' is unknown; use full, head, lastK or loraR (blocks and rank in figures: last2, lora8)"
        )
    wanted = ((module, [p.requires_grad for p in module.parameters()]) for module in encoder.modules())
    return [module for module, trained in wanted if trained and not any(trained)]


def describe(mode: str) -> dict[str, Any]:
    """Default optimiser settings of a mode: what is few and starts at zero bears a larger step than a whole network."""
    return {"lr": 3e-3 if mode.startswith(("head", "lora")) else 1e-3, "weight_decay": 0.05, "warmup": 0.1}
