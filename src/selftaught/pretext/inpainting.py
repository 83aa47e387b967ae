"""Inpainting: a region of the picture is hidden, and its pixels are predicted from what lies around it (context encoders).

Pathak, Krähenbühl, Donahue, Darrell, Efros 2016, "Context Encoders: Feature Learning by Inpainting".
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call

from selftaught.batch import Batch, Seen, Share, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import Discriminator, PixelDecoder
from selftaught.modality.base import Modality
from selftaught.pretext.base import Pretext, whole_view
from selftaught.pretext.filling import refuse_head
from selftaught.pretext.views import zero_or_more

_DRAWS = 98  # stream
_BLOCKS, _AREA = 5, 1 / 4  # random blocks, and the share of the picture that they cover if none overlap
_OVERLAP_WEIGHT = 10  # section 4.2, of pixels that are seen and predicted as well


def around(hidden: Bool[Tensor, "b 1 s s"], reach: int) -> Bool[Tensor, "b 1 s s"]:
    """Pixels that are not hidden and lie within `reach` of hidden ones."""
    grown = F.max_pool2d(hidden.float(), 2 * reach + 1, stride=1, padding=reach) > 0
    return grown & ~hidden


class Inpainting(Pretext):
    """The encoder on the picture with a hole, a decoder of its feature map to pixels, and their squared error in the hole.

    UserError for views of another size than the encoder's, and for encoders whose features are read through weights of their own
    behind the feature map (ConvNeXt, MobileNetV3), which nothing here would train.
    """

    @dataclass(frozen=True)
    class Config:
        """region: what is hidden: "random", five square blocks that cover up to a quarter of the picture; or "centre", the middle
            half of each side, by which the paper fills in pictures. It learns features by random regions of any shape (its
            code, train_random.lua: where noise of low resolution is below a threshold, 20 to 30 % of the picture): blocks are
            our deviation.
        overlap: width in pixels of a rim of seen pixels around the hole that are predicted too, with ten times the weight
            (the paper's is 7 of 227 for the centre); 0: hidden pixels alone.
        adversarial: weight of the adversarial loss, the squared error having 1 less it. The paper's is 0.001 where pictures
            are filled in, and 0 where features are learnt.
        view: changes to the light view (crop and flip), but not to its size.
        """

        region: Literal["centre", "random"] = "random"
        overlap: int = 0
        adversarial: float = 0.0
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            zero_or_more(self, "overlap")
            if not 0 <= self.adversarial < 1:
                raise UserError(
                    f"setting 'pretext.adversarial' is {self.adversarial}; it must be 0 or more, and below 1"
                )

    family = "predictive"
    paper = "Pathak et al. 2016, arXiv:1604.07379"
    wants = frozenset({"patches"})
    collapses = False

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        refuse_head(encoder)
        self.view = whole_view(modality, config.view)
        channels = encoder.config.channels
        self.decoder = PixelDecoder(encoder.token_width, channels, encoder.grid, modality.size)
        self.discriminator = Discriminator(channels, modality.size) if config.adversarial else None

    def hidden(self, batch: Batch) -> Bool[Tensor, "b 1 s s"]:
        """The pixels that are hidden."""
        side = self.modality.size
        pixel = torch.arange(side, device=batch.index.device)
        if self.config.region == "centre":
            middle = (pixel >= side // 4) & (pixel < side // 4 + side // 2)
            return (middle[:, None] & middle).expand(len(batch), 1, side, side)
        block = max(1, int(side * (_AREA / _BLOCKS) ** 0.5))
        first = (batch.uniform(_DRAWS, 2 * _BLOCKS) * (side - block + 1)).long()[..., None]
        inside = (pixel >= first) & (pixel < first + block)
        rows, columns = inside.chunk(2, 1)
        return (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The pictures, which pixels are hidden, and what is read: 0, the mean colour, in their place."""
        x = self.modality.view(batch, self.view, stream=1)
        hidden = self.hidden(batch)
        return x, hidden, x.masked_fill(hidden, 0.0)

    def forward(self, batch: Batch) -> Step:
        """Loss: squared error in the hole (eq. 1), mean over its pixels, then over pictures; and the adversarial loss (eq. 2)."""
        x, hidden, reads = self.drawn(batch)
        made = self.decoder(self.encoder(reads).tokens)
        with torch.autocast(x.device.type, enabled=False):
            made, weight = made.float(), hidden.float()
            if self.config.overlap:
                weight = weight + _OVERLAP_WEIGHT * around(hidden, self.config.overlap)
            error = (weight * (made - x).square().mean(1, keepdim=True)).sum((1, 2, 3)) / weight.sum((1, 2, 3))
        if self.discriminator is None:
            return Step(error.mean(), {})
        fool, tell, metrics = self.contest(x * hidden, made * hidden)
        share = self.config.adversarial
        loss = (1 - share) * error.mean() + share * fool
        # The discriminator's own loss adds its gradient and no value: what is logged falls as pictures get better.
        return Step(loss + tell - tell.detach(), {"error": error.mean().detach(), **metrics})

    def contest(self, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss of what made the regions, that they are taken for real, and the discriminator's, that it tells them apart.

        One optimiser has both: the first loss reads the discriminator with weights that take no gradient, the second reads the
        regions without theirs. What is around the hole is blank to the discriminator, or it would look for the seam.
        """
        assert self.discriminator is not None
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        taken = functional_call(self.discriminator, fixed, (made,)).float()
        of_real, of_made = self.discriminator(torch.cat([real, made.detach()])).float().chunk(2)
        tell = F.softplus(-of_real).mean() + F.softplus(of_made).mean()
        right = ((of_real > 0).float().mean() + (of_made <= 0).float().mean()) / 2
        return F.softplus(-taken).mean(), tell, {"discriminator": tell.detach(), "told apart": right}

    @torch.no_grad()
    def filled(self, batch: Batch) -> Float[Tensor, "b c s s"]:
        """The pictures with the hole filled in, normalised as views are."""
        x, hidden, reads = self.drawn(batch)
        return torch.where(hidden, self.decoder(self.encoder(reads).tokens).float(), x)

    def rebuilt(self, batch: Batch) -> tuple[Seen, ...]:
        x, _, reads = self.drawn(batch)
        return Seen("picture", x), Seen("reads", reads), Seen("predicts", self.filled(batch))

    def show(self, batch: Batch) -> Shown:
        _, hidden, reads = self.drawn(batch)
        share = Share(int(hidden.sum()), hidden.numel())
        return Shown((Seen("reads", reads),), {"pixels hidden": share})
