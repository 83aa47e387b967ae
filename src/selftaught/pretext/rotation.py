"""Rotation prediction: by which multiple of 90 degrees was the picture turned?

Gidaris, Singh, Komodakis 2018, "Unsupervised Representation Learning by Predicting Image Rotations" (RotNet).
"""

from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from selftaught.batch import Batch, Step
from selftaught.encoders import Encoder
from selftaught.modality.base import Modality
from selftaught.pretext.base import Pretext, customised


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

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.view = customised(modality.light_view(), config.view)
        self.head = nn.Linear(encoder.width, 4)

    def forward(self, batch: Batch) -> Step:
        """Loss: mean cross-entropy over the rotated copies (the paper's eq. 2)."""
        x = self.modality.view(batch, self.view, stream=1)
        if self.config.copies == 4:
            y = torch.arange(4, device=x.device).repeat_interleave(len(x))
            x = torch.cat([torch.rot90(x, k, dims=(2, 3)) for k in range(4)])
        else:
            y = (batch.uniform(2, 1)[:, 0] * 4).long()
            turned = torch.stack([torch.rot90(x, k, dims=(2, 3)) for k in range(4)])
            x = turned[y, torch.arange(len(x), device=x.device)]
        logits = self.head(self.encoder(x).pooled)
        accuracy = (logits.argmax(1) == y).float().mean()
        return Step(F.cross_entropy(logits, y), {"accuracy": accuracy})

    def chance(self, batch_size: int) -> float:
        """Cross-entropy of a uniform guess among four orientations."""
        return log(4)
