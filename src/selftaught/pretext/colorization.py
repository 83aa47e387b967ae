"""Colorization: the encoder sees a picture in grey, and the colours are predicted as a distribution over bins.

Zhang, Isola, Efros 2016, "Colorful Image Colorization".
"""

from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from selftaught.batch import Batch, Seen, Share, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import PixelDecoder
from selftaught.modality.base import Modality
from selftaught.modality.image import ImageModality
from selftaught.modality.image.lab import gamut, grey, lab_to_rgb, nearest, rgb_to_lab
from selftaught.pretext.base import Pretext, whole_view
from selftaught.pretext.filling import refuse_head
from selftaught.pretext.views import above_zero
from selftaught.ranks import summed

_CHROMA = 10  # of a and b together, below which a colour is called grey


class Drawn(NamedTuple):
    """What the encoder reads, [B, 3, S, S], and of the same pictures L [B, 1, S, S], and a and b [B, 2, s, s] of areas."""

    reads: Tensor
    light: Tensor
    ab: Tensor


def rebalancing(p: Float[Tensor, " q"], mixed: float) -> Float[Tensor, " q"]:
    """Weights of bins that are met with the probabilities p (eq. 4): rare colours count more; 1 in the mean over p."""
    weight = 1 / ((1 - mixed) * p + mixed / len(p))
    return weight / (p * weight).sum()


class Colorization(Pretext):
    """Encoder of the grey picture, a small decoder of its feature map, and cross-entropy over the bins of a and b.

    UserError for grey pictures, views of another size than the encoder's, more neighbours than bins, and encoders whose features
    are read through weights of their own behind the feature map (ConvNeXt, MobileNetV3), which nothing here would train.
    """

    @dataclass(frozen=True)
    class Config:
        """scale: colours are predicted at 1 / scale of the picture's side (paper: 4), or on the encoder's own grid if finer.
        bin: side of a bin of a and b (paper: 10). sRGB has colours in 261 cells of that grid; the paper's 313 are of a list
            that reaches a bin farther.
        neighbours, sigma: a colour is shared between so many nearest bins by a Gaussian (paper: 5 and 5); sigma also smooths
            how often each bin was met.
        uniform: share of the uniform distribution in the weights of bins (the paper's lambda, 0.5); 1 weighs all alike, and
            the many greyish pixels then win.
        temperature: of the annealed mean that makes one colour of a distribution (paper: 0.38); training does not use it.
        view: changes to the light view (crop and flip), but not to its size.
        """

        scale: int = 4
        bin: int = 10
        neighbours: int = 5
        sigma: float = 5.0
        uniform: float = 0.5
        temperature: float = 0.38
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            above_zero(self, "scale", "neighbours", "sigma", "temperature")
            if not 5 <= self.bin <= 40:
                raise UserError(f"setting 'pretext.bin' is {self.bin}; it must be 5 to 40")
            if not 0 < self.uniform <= 1:
                raise UserError(f"setting 'pretext.uniform' is {self.uniform}; it must be above 0, and 1 at most")

    family = "predictive"
    paper = "Zhang et al. 2016, arXiv:1603.08511"
    wants = frozenset({"colour"})
    collapses = False

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        assert isinstance(modality, ImageModality)
        if modality.channels != 3:
            raise UserError(
                f"pretext 'colorization' predicts colours, and the pictures have {modality.channels} channel"
                f"{'s' * (modality.channels > 1)}; use pictures in RGB, or inpainting"
            )
        refuse_head(encoder)
        self.view = whole_view(modality, config.view)
        bins = gamut(config.bin)
        if config.neighbours > len(bins):
            raise UserError(
                f"setting 'pretext.neighbours' is {config.neighbours}, and there are {len(bins)} bins of side {config.bin}; "
                f"use {len(bins)} or less, or a smaller pretext.bin"
            )
        self.side = max(modality.size // config.scale, encoder.grid[0])
        self.decoder = PixelDecoder(encoder.token_width, len(bins), encoder.grid, self.side)
        kernel = torch.exp(-torch.cdist(bins, bins).square() / (2 * config.sigma**2))
        self.bins: Tensor
        self.register_buffer("bins", bins, persistent=False)
        self.smooth: Tensor  # columns sum to 1, and so does what is smoothed
        self.register_buffer("smooth", kernel / kernel.sum(0), persistent=False)
        self.units: Tensor
        self.register_buffer("units", torch.tensor([modality.mean, modality.std])[..., None, None], persistent=False)
        self.counts: Tensor  # of the pixels of all steps so far, by their nearest bin
        self.register_buffer("counts", torch.zeros(len(bins), dtype=torch.long))
        self.met: Tensor | None = None  # in the step under way

    def drawn(self, batch: Batch) -> Drawn:
        """L alone is read, as the grey that has it: what the encoder meets later are pictures."""
        mean, std = self.units
        rgb = (self.modality.view(batch, self.view, stream=1) * std + mean).clamp(0, 1)
        lab = rgb_to_lab(rgb)
        return Drawn((grey(rgb) - mean) / std, lab[:, :1], F.adaptive_avg_pool2d(lab[:, 1:], self.side))

    def weights(self) -> Tensor:
        """Of each bin [Q], by how often colours were met in training; all 1 before the first step."""
        total = self.counts.sum()
        met = self.counts.float() / total.clamp_min(1)
        smoothed = (self.smooth * met).sum(1)
        return torch.where(total > 0, rebalancing(smoothed, self.config.uniform), 1.0)

    def forward(self, batch: Batch) -> Step:
        """Loss: cross-entropy with the colour's nearest bins (eq. 2), times the weight of the nearest, over all areas."""
        reads, _, ab = self.drawn(batch)
        logits = self.decoder(self.encoder(reads).tokens)
        with torch.autocast(ab.device.type, enabled=False):
            index, share = nearest(ab, self.bins, self.config.neighbours, self.config.sigma)
            surprise = -(share * F.log_softmax(logits.float(), 1).gather(1, index)).sum(1)
            loss = (self.weights()[index[:, 0]] * surprise).mean()
        if self.training:
            met = torch.zeros_like(self.counts).index_add_(
                0, index[:, 0].flatten(), torch.ones_like(index[:, 0]).flatten()
            )
            self.met = met if self.met is None else self.met + met
        return Step(loss, {"accuracy": (logits.argmax(1) == index[:, 0]).float().mean()})

    def after_step(self, progress: float) -> None:
        """Count the colours of all ranks. The paper counts ImageNet's beforehand."""
        if self.met is not None:
            self.counts += summed(self.met)
            self.met = None

    @torch.no_grad()
    def colourised(self, batch: Batch) -> Float[Tensor, "b 3 s s"]:
        """The pictures in predicted colours, normalised as views are: L as it is, a and b by the annealed mean (eq. 5)."""
        reads, light, _ = self.drawn(batch)
        p = torch.softmax(self.decoder(self.encoder(reads).tokens).float() / self.config.temperature, 1)
        ab = torch.stack([(p * axis[:, None, None]).sum(1) for axis in self.bins.unbind(1)], 1)
        ab = F.interpolate(ab, size=light.shape[2:], mode="bilinear", align_corners=False)
        mean, std = self.units
        return (lab_to_rgb(torch.cat([light, ab], 1)).clamp(0, 1) - mean) / std

    def rebuilt(self, batch: Batch) -> tuple[Seen, ...]:
        picture = self.modality.view(batch, self.view, stream=1)
        return (
            Seen("picture", picture),
            Seen("reads", self.drawn(batch).reads),
            Seen("predicts", self.colourised(batch)),
        )

    def show(self, batch: Batch) -> Shown:
        reads, _, ab = self.drawn(batch)
        chroma = ab.square().sum(1).sqrt()
        return Shown(
            (Seen("reads", reads),), {"areas with colour": Share(int((chroma >= _CHROMA).sum()), chroma.numel())}
        )

    def chance(self, batch_size: int) -> float:
        """Cross-entropy of a uniform guess among the bins."""
        return log(len(self.bins))
