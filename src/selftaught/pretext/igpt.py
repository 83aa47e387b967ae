"""iGPT: guess each pixel's colour from the pixels before it in reading order, by maximum likelihood.

Chen, Radford, Child, Wu, Jun, Luan, Sutskever 2020, "Generative Pretraining from Pixels".
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.batch import Batch, Seen, Shown, Step
from selftaught.encoders import Encoder
from selftaught.encoders.pixels import PixelEncoder
from selftaught.modality.base import Modality
from selftaught.pretext.base import Pretext, whole_view

_CONTINUED = 94  # stream of randomness


class IGPT(Pretext):
    """The mean over pixels of -log p(colour | colours before it); all pixels of a picture are trained at once.

    What is read, a small picture of few colours, belongs to the encoder, which reads the same ever after:
    encoder.options.side and encoder.options.levels.
    """

    @dataclass(frozen=True)
    class Config:
        """view: changes to the light view (random resized crop and flip)."""

        view: dict[str, Any] | None = None

    family = "generative"
    paper = "Chen et al. 2020, ICML, Generative Pretraining from Pixels"
    needs = frozenset({"causal_pixels"})
    collapses = False

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.encoder: PixelEncoder
        self.view = whole_view(modality, config.view)
        self.head = nn.Linear(encoder.width, self.encoder.colours, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The small pictures of few colours, and the colours [B, N]."""
        colours = self.encoder.quantise(self.modality.view(batch, self.view, stream=1))
        return self.encoder.picture(colours), colours

    def forward(self, batch: Batch) -> Step:
        """Loss: nats a pixel. bits_per_dim: bits a pixel and channel, of the small picture in the colours that it has."""
        x, colours = self.drawn(batch)
        logits = self.head(self.encoder(x).tokens).flatten(0, 1)
        loss = F.cross_entropy(logits.float(), colours.flatten())
        accuracy = (logits.argmax(1) == colours.flatten()).float().mean()
        return Step(loss, {"bits_per_dim": loss.detach() / math.log(2) / self.encoder.channels, "accuracy": accuracy})

    def show(self, batch: Batch) -> Shown:
        return Shown((Seen("reads", self.drawn(batch)[0]),), {})

    def rebuilt(self, batch: Batch) -> tuple[Seen, ...]:
        """The lower half as it is continued from the upper one, each pixel drawn by its probability."""
        x, colours = self.drawn(batch)
        n = colours.shape[1]
        ids, given = colours.clone(), n // 2
        u = batch.uniform(_CONTINUED, n)
        for at in range(given, n):
            states, _ = self.encoder.model(ids[:, : at + 1])
            share = self.head(states[:, -1]).float().softmax(1).cumsum(1)
            ids[:, at] = torch.searchsorted(share, u[:, at, None] * share[:, -1:])[:, 0].clamp_max(
                self.encoder.colours - 1
            )
        reads = x.clone()
        reads.flatten(2)[:, :, given:] = 0.0
        return Seen("picture", x), Seen("reads", reads), Seen("continues", self.encoder.picture(ids))

    def chance(self, batch_size: int) -> float:
        """All colours alike."""
        return math.log(self.encoder.colours)
