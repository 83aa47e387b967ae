"""Rotation prediction: by which multiple of 90 degrees was the picture turned?

Gidaris, Singh, Komodakis 2018, "Unsupervised Representation Learning by Predicting Image Rotations" (RotNet).
"""

from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.batch import Answers, Batch, Seen, Share, Shown, Step
from selftaught.encoders import Encoder
from selftaught.modality.base import Modality
from selftaught.pretext.base import Pretext, check_size, customised

_TURNS = tuple(f"turned by {turn} degrees" for turn in (0, 90, 180, 270))


class Rotation(Pretext):
    """A linear classifier of the four orientations on the encoder's pooled features."""

    @dataclass(frozen=True)
    class Config:
        """copies: rotations of each picture per batch. The paper's 4 shows each picture in all four orientations;
        1 draws one orientation a picture, a quarter of the cost.

        view: changes to the light view (crop and flip) that comes before the rotation.
        """

        copies: Literal[1, 4] = 4
        view: dict[str, Any] | None = None

    family = "predictive"
    paper = "Gidaris et al. 2018, arXiv:1803.07728"
    wants = frozenset({"upright"})
    collapses = False

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.view = customised(modality.light_view(), config.view)
        check_size(encoder, self.view.size, "view.size")
        self.head = nn.Linear(encoder.width, 4)

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The turned pictures, all in the first orientation first where there are four copies, and their orientation."""
        x = self.modality.view(batch, self.view, stream=1)
        if self.config.copies == 4:
            y = torch.arange(4, device=x.device).repeat_interleave(len(x))
            x = torch.cat([torch.rot90(x, k, dims=(2, 3)) for k in range(4)])
        else:
            y = (batch.uniform(2, 1)[:, 0] * 4).long()
            turned = torch.stack([torch.rot90(x, k, dims=(2, 3)) for k in range(4)])
            x = turned[y, torch.arange(len(x), device=x.device)]
        return x, y

    def forward(self, batch: Batch) -> Step:
        """Loss: mean cross-entropy over the rotated copies (the paper's eq. 2)."""
        x, y = self.drawn(batch)
        logits = self.head(self.encoder(x).pooled).float()
        accuracy = (logits.argmax(1) == y).float().mean()
        return Step(F.cross_entropy(logits, y), {"accuracy": accuracy})

    def show(self, batch: Batch) -> Shown:
        x, y = self.drawn(batch)
        if self.config.copies == 4:
            return Shown(tuple(map(Seen, _TURNS, x.chunk(4))), {})
        shares = {turn: Share(int((y == k).sum()), len(y), 1 / 4) for k, turn in enumerate(_TURNS)}
        return Shown((Seen("reads", x),), shares, tuple(_TURNS[k] for k in y.tolist()))

    def answers(self, batch: Batch) -> Answers:
        x, y = self.drawn(batch)
        return Answers(("0°", "90°", "180°", "270°"), y, self.head(self.encoder(x).pooled).argmax(1))

    def chance(self, batch_size: int) -> float:
        """Cross-entropy of a uniform guess among four orientations."""
        return log(4)
