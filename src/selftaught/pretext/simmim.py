"""SimMIM: blocks of the picture are replaced by a token, and one linear layer predicts their pixels.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu 2022, "SimMIM: A Simple Framework for Masked Image Modeling".
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.batch import Batch, Seen, Share, Shown, Step
from selftaught.encoders import Encoder
from selftaught.encoders.init import init_transformer
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.modality.image.masks import cell_masking, cell_side
from selftaught.modality.image.units import patchify, standardisable, standardised, unpatchify
from selftaught.pretext.base import Pretext, whole_view
from selftaught.pretext.filling import leave_pooling

_MASK = 91  # stream of randomness


class SimMIM(Pretext):
    """The encoder reads the whole grid, a mask token in the place of hidden patches; its tokens are mapped to pixels."""

    @dataclass(frozen=True)
    class Config:
        """mask: share of hidden patches (paper: 0.6, table 1).

        block: side of the hidden squares in patches. None: about a sixth to a seventh of the picture's, as the paper's 32 px
            are of 192 and 224 px.
        normalise: predict pixels standardised within each patch (paper: no, those of the normalised picture).
        view: changes to the light view (random resized crop and flip); the authors' crops show two thirds and more.
        """

        mask: float = 0.6
        block: int | None = None
        normalise: bool = False
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            if not 0 < self.mask < 1:
                raise UserError(
                    f"setting 'pretext.mask' is {self.mask}; it must be between 0 and 1: without hidden patches there is "
                    "nothing to predict, without visible ones nothing to predict from"
                )

    family = "masked"
    paper = "Xie et al. 2022, arXiv:2111.09886"
    needs = frozenset({"hide"})
    collapses = False
    wants = frozenset({"patches"})

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        leave_pooling(encoder)
        self.view = whole_view(modality, config.view, crop_scale=(0.67, 1.0))
        if config.normalise:
            standardisable(encoder.patch, encoder.config.channels)
        self.side = cell_side(encoder.grid, config.block)
        self.mask_token = nn.Parameter(torch.randn(encoder.token_width) * 0.02)
        self.predict = nn.Linear(encoder.token_width, encoder.patch**2 * encoder.config.channels)
        init_transformer(self.predict)

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The pictures, their patches, and which of those are hidden."""
        x = self.modality.view(batch, self.view, stream=1)
        patches = patchify(x, self.encoder.patch)
        noise = batch.uniform(_MASK, patches.shape[1] // self.side**2)
        return x, patches, cell_masking(noise, self.config.mask, self.side, self.encoder.grid)

    def predicted(self, x: Tensor, hidden: Tensor) -> Tensor:
        """What is predicted of all patches, [B, N, P]."""
        return self.predict(self.encoder(x, hide=(hidden, self.mask_token)).tokens).float()

    def forward(self, batch: Batch) -> Step:
        """Loss: mean absolute error of the hidden pixels (eq. 1)."""
        x, target, hidden = self.drawn(batch)
        if self.config.normalise:
            target = standardised(target)
        error = (self.predicted(x, hidden) - target).abs().mean(-1)
        return Step((error * hidden).sum() / hidden.sum(), {})

    def rebuilt(self, batch: Batch) -> tuple[Seen, ...]:
        """A patch that is predicted standardised has its own mean and spread again."""
        x, patches, hidden = self.drawn(batch)
        made = self.predicted(x, hidden)
        if self.config.normalise:
            made = made * patches.std(-1, keepdim=True) + patches.mean(-1, keepdim=True)
        filled = torch.where(hidden[..., None], made, patches)
        return (*self.show(batch).seen, Seen("predicts", unpatchify(filled, self.encoder.patch, self.encoder.grid)))

    def show(self, batch: Batch) -> Shown:
        x, patches, hidden = self.drawn(batch)
        left = unpatchify(patches * ~hidden[..., None], self.encoder.patch, self.encoder.grid)
        share = Share(int(hidden.sum()), hidden.numel(), self.config.mask)
        return Shown((Seen("picture", x), Seen("reads", left)), {"patches hidden": share})
