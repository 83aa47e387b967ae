"""What the tasks on tiles of a picture have in common: one encoder for all tiles, and a classifier of how they lie."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import log
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from selftaught.batch import Batch, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import Norm, ProjectionHead
from selftaught.modality.base import Modality
from selftaught.modality.image.tiles import tile_side
from selftaught.pretext.base import Pretext, check_size, customised
from selftaught.pretext.views import above_zero, refuse_one


class Tiles(Pretext):
    """Features of `count` tiles, side by side, are mapped to one of `classes`."""

    @dataclass(frozen=True)
    class Config:
        """tile: side of a tile in pixels, whole patches of the encoder; None is half the encoder's pictures.
        hidden, layers: of the classifier; hidden None is twice the encoder's width (the papers' 4096 belong to AlexNet).
        norm: of the classifier, "batch", "layer" or "none".
        view: changes to the light view (crop and flip) out of which tiles are cut.
        """

        tile: int | None = None
        hidden: int | None = None
        layers: int = 2
        norm: Norm = "batch"
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            above_zero(self, "tile", "hidden", "layers")

    family = "predictive"
    needs = frozenset({"sizes"})
    collapses = False
    wants = frozenset({"patches", "upright"})

    def __init__(self, encoder: Encoder, modality: Modality, config: Any, count: int, classes: int) -> None:
        super().__init__(encoder, modality, config)
        self.tile = tile_side(modality.size, encoder.patch, config.tile)
        if config.view and "size" in config.view:
            raise UserError("setting 'pretext.view.size' follows from the tiles'; leave it out, and set pretext.tile")
        check_size(encoder, self.tile, "tile")
        self.view = customised(replace(self.light_view(), size=self.extent()), config.view)
        self.classes = classes
        self.head = ProjectionHead(
            count * encoder.width, config.hidden or 2 * encoder.width, classes, layers=config.layers, norm=config.norm
        )

    def light_view(self) -> Any:
        """What the picture is made with before it is cut."""
        return self.modality.light_view()

    @abstractmethod
    def extent(self) -> int:
        """Side of the view out of which tiles of `self.tile` pixels are cut."""

    @abstractmethod
    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tiles [B, count, C, tile, tile] as the encoder reads them, and the class [B] of how they lie."""

    def logits(self, tiles: Tensor) -> Tensor:
        """What is thought of each class, [B, classes]."""
        features = self.encoder(tiles.flatten(0, 1)).pooled
        return self.head(features.reshape(len(tiles), -1)).float()

    def forward(self, batch: Batch) -> Step:
        """Loss: mean cross-entropy over the pictures."""
        if self.training and self.config.norm == "batch":
            refuse_one(batch, self.name)
        tiles, y = self.drawn(batch)
        logits = self.logits(tiles)
        accuracy = (logits.argmax(1) == y).float().mean()
        return Step(F.cross_entropy(logits, y), {"accuracy": accuracy})

    def chance(self, batch_size: int) -> float:
        """Cross-entropy of a uniform guess."""
        return log(self.classes)
