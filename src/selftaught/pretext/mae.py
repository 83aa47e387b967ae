"""MAE: most patches are hidden, and their pixels are predicted from the few that are seen.

He, Chen, Xie, Li, Dollár, Girshick 2022, "Masked Autoencoders Are Scalable Vision Learners".
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selftaught.batch import Batch, Seen, Share, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.modality.image.masks import random_masking
from selftaught.modality.image.units import patchify, standardisable, standardised, unpatchify
from selftaught.pretext.base import Pretext, whole_view
from selftaught.pretext.filling import Filling, leave_pooling
from selftaught.pretext.views import above_zero


class MAE(Pretext):
    """The encoder sees visible patches alone; a small decoder fills in the hidden ones."""

    @dataclass(frozen=True)
    class Config:
        """mask: share of hidden patches (paper: 0.75).

        normalise: predict pixels standardised within each patch (paper, table 1d).
        decoder_width, decoder_depth: the paper's 512 and 8 belong to ViT-L at 224 px and would cost a small encoder twelve
            times its own work; None sizes them to the encoder: its width (512 at most), a third of its blocks.
        view: changes to the light view (random resized crop and flip).
        """

        mask: float = 0.75
        normalise: bool = True
        decoder_width: int | None = None
        decoder_depth: int | None = None
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            if not 0 < self.mask < 1:
                raise UserError(f"setting 'pretext.mask' is {self.mask}; it must be a share between 0 and 1")
            above_zero(self, "decoder_width", "decoder_depth")

    family = "masked"
    paper = "He et al. 2022, arXiv:2111.06377"
    needs = frozenset({"keep"})
    collapses = False
    wants = frozenset({"patches"})

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        leave_pooling(encoder)
        self.view = whole_view(modality, config.view)
        if config.normalise:
            standardisable(encoder.patch, encoder.config.channels)
        width = config.decoder_width or min(encoder.token_width, 512)
        depth = config.decoder_depth or max(1, (encoder.depth - 1) // 3)
        self.decoder = Filling(encoder, width, depth, encoder.patch**2 * encoder.config.channels)

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pictures, their patches, and which of those are kept and hidden."""
        x = self.modality.view(batch, self.view, stream=1)
        patches = patchify(x, self.encoder.patch)
        return x, patches, *random_masking(batch.uniform(2, patches.shape[1]), self.config.mask)

    def predicted(self, x: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        """What is predicted of the hidden patches, [B, M, P]."""
        return self.decoder(self.encoder(x, keep).tokens, keep, hidden).float()

    def forward(self, batch: Batch) -> Step:
        """Loss: mean squared error on hidden patches only (section 3, "Reconstruction target")."""
        x, target, keep, hidden = self.drawn(batch)
        if self.config.normalise:
            target = standardised(target)
        predicted = self.predicted(x, keep, hidden)
        wanted = target.gather(1, hidden[..., None].expand(-1, -1, target.shape[2]))
        loss = (predicted - wanted).square().mean()
        return Step(loss, {})

    def show(self, batch: Batch) -> Shown:
        x, patches, _, hidden = self.drawn(batch)
        left = patches.scatter(1, hidden[..., None].expand(-1, -1, patches.shape[2]), 0.0)
        share = Share(hidden.numel(), patches.shape[0] * patches.shape[1], self.config.mask)
        seen = Seen("picture", x), Seen("reads", unpatchify(left, self.encoder.patch, self.encoder.grid))
        return Shown(seen, {"patches hidden": share})

    def rebuilt(self, batch: Batch) -> tuple[Seen, ...]:
        """A hidden patch that is predicted standardised has its own mean and spread again, as in the authors' pictures."""
        x, patches, keep, hidden = self.drawn(batch)
        at = hidden[..., None].expand(-1, -1, patches.shape[2])
        made = self.predicted(x, keep, hidden)
        if self.config.normalise:
            true = patches.gather(1, at)
            made = made * true.std(-1, keepdim=True) + true.mean(-1, keepdim=True)
        filled = unpatchify(patches.scatter(1, at, made), self.encoder.patch, self.encoder.grid)
        return (*self.show(batch).seen, Seen("predicts", filled))

    def chance(self, batch_size: int) -> float | None:
        """A patch of P standardised numbers has unit variance: predicting the mean costs (P - 1) / P."""
        count = self.encoder.patch**2 * self.encoder.config.channels
        return 1 - 1 / count if self.config.normalise else None
