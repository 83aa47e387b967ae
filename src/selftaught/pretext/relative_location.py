"""Relative location: a patch of a picture and one of its eight neighbours; which one?

Doersch, Gupta, Efros 2015, "Unsupervised Visual Representation Learning by Context Prediction".
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from selftaught import rng
from selftaught.batch import Answers, Batch, Seen, Share, Shown
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.modality.image import ImageModality
from selftaught.modality.image.tiles import cut, one_channel, pixelated, standardised, without_aberration
from selftaught.pretext.tiles import Tiles
from selftaught.pretext.views import shares, zero_or_more

_NEIGHBOURS = tuple((row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1))
_NAMES = tuple(
    f"{row} {column}".strip() for row in ("above", "", "below") for column in ("left", "", "right") if row + column
)
# Streams: which neighbour and where; the noise in dropped channels; which patches are pixelated, and how much.
_DRAWS, _NOISE, _COARSE, _SIDE = 96, 97, 100, 101
_COARSEST = 10 / 96
_NOISE_STD = 0.01  # beside the kept channel's


class RelativeLocation(Tiles):
    """The encoder on both patches, and a classifier of the eight places on their features side by side.

    Between patches is a gap and each is shifted, so that lines which go on across them do not tell; and colours are taken away,
    since the fringes that lenses leave tell where in the picture a patch lies; a third of the patches is pixelated, so that how
    pixels were made does not tell either (section 3.1).
    """

    @dataclass(frozen=True)
    class Config(Tiles.Config):
        """layers: of the classifier (paper: fc7 to fc9). gap: between patches, of a patch's side. jitter: the largest shift of
        a patch each way, of its side; the paper's is 7 of 96.
        colours: "drop" keeps one channel of each patch, the others are noise; "project" takes away green against magenta;
            "keep" leaves them, as pictures that have not three channels are left.
        pixelated: share of the patches that are made smaller, to a side drawn for the step, and as large as they were again.
        """

        layers: int = 3
        gap: float = 0.5
        jitter: float = 7 / 96
        colours: Literal["drop", "project", "keep"] = "drop"
        pixelated: float = 1 / 3

        def __post_init__(self) -> None:
            super().__post_init__()
            zero_or_more(self, "gap")
            shares(self, "pixelated")
            if not 0 <= 2 * self.jitter <= self.gap:
                raise UserError(
                    f"setting 'pretext.jitter' is {self.jitter}; it must be 0 to half of the gap, {self.gap / 2}"
                )

    paper = "Doersch et al. 2015, arXiv:1505.05192"
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {"image": {"gap": 0.25}}

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config, 2, len(_NEIGHBOURS))
        assert isinstance(modality, ImageModality)
        self.std: Tensor
        self.register_buffer("std", torch.tensor(modality.std)[:, None, None], persistent=False)
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor(_NEIGHBOURS), persistent=False)

    def extent(self) -> int:
        self.jitter = round(self.tile * self.config.jitter)
        self.pitch = self.tile + max(round(self.tile * self.config.gap), 2 * self.jitter)
        return 2 * self.pitch + self.tile + 2 * self.jitter

    def places(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Top and left [B, 2] of the centre and of the neighbour, and which neighbour [B] in reading order."""
        u = batch.uniform(_DRAWS, 5)
        y = (u[:, 0] * len(_NEIGHBOURS)).long()
        shift = (u[:, 1:] * (2 * self.jitter + 1)).long().view(-1, 2, 2)
        cell = torch.stack([torch.ones_like(self.offsets[y]), self.offsets[y]], 1)
        top, left = (cell * self.pitch + shift).unbind(2)
        return top, left, y

    def coarse(self, batch: Batch) -> int:
        """Side of pixelated patches: from 10 of 96 pixels up, of as many pixels uniformly (the authors' code draws it anew for
        each patch)."""
        u = float(rng.uniform(rng.fold(batch.seed, batch.step, _SIDE), torch.zeros(1, dtype=torch.int64), 1))
        return max(1, round(self.tile * (_COARSEST**2 + u * (1 - _COARSEST**2)) ** 0.5))

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The centre and its neighbour [B, 2, C, tile, tile], and which neighbour it is."""
        top, left, y = self.places(batch)
        patches = cut(self.modality.view(batch, self.view, stream=1), top, left, self.tile)
        patches = pixelated(patches, self.coarse(batch), batch.uniform(_COARSE, 2) < self.config.pixelated)
        colours = self.config.colours if patches.shape[2] == 3 else "keep"
        if colours == "project":  # of pixels; what normalisation subtracted goes with each patch's own mean
            return standardised(without_aberration(patches * self.std)), y
        patches = standardised(patches)
        if colours == "drop":
            u = batch.uniform(_NOISE, 2 + patches[0].numel())
            noise = (u[:, 2:].view(patches.shape) - 0.5) * (12**0.5 * _NOISE_STD)
            patches = one_channel(patches, (u[:, :2] * 3).long(), noise)
        return patches, y

    def answers(self, batch: Batch) -> Answers:
        patches, y = self.drawn(batch)
        return Answers(_NAMES, y, self.logits(patches).argmax(1))

    def show(self, batch: Batch) -> Shown:
        patches, y = self.drawn(batch)
        shares = {name: Share(int((y == k).sum()), len(y), 1 / len(_NAMES)) for k, name in enumerate(_NAMES)}
        seen = Seen("centre", patches[:, 0]), Seen("neighbour", patches[:, 1])
        return Shown(seen, shares, tuple(_NAMES[k] for k in y.tolist()))
