"""I-JEPA: from one block of a picture, features of other blocks are predicted; an averaged encoder makes them.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas 2023, "Self-Supervised Learning from Images with a
Joint-Embedding Predictive Architecture".
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught import rng
from selftaught.batch import Batch, Seen, Share, Shown, Step
from selftaught.ema import EMA
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.modality.image.masks import block_side, multi_block
from selftaught.modality.image.units import patchify, unpatchify
from selftaught.pretext.base import Pretext, whole_view
from selftaught.pretext.filling import Filling, leave_pooling

_PLACES, _SIDES, _ORDER, _LIKE = 92, 93, 94, 95  # streams of randomness
_OTHERS = 64  # layouts whose least context is what every picture shows


class IJEPA(Pretext):
    """Context encoder f, predictor g and target encoder f': g(f(context), place) comes near f'(picture) at the place.

    The bundle keeps f. The authors evaluate f', which after the steps of a small machine is still half its first weights;
    `train.ema` keeps another average of f.
    """

    @dataclass(frozen=True)
    class Config:
        """targets: blocks that are predicted, each by itself.

        target_scale, target_aspect: bounds of their share of the patches and of their height / width.
        context_scale: bounds of the context block's share, which is square; what targets cover is taken out of it.
        momentum: of the target encoder at first; it rises linearly to 1 over the run.
        predictor_width, predictor_depth: the paper's 384 and 6 belong to a ViT-B, 768 wide and 12 deep; None is half the
            encoder's, at most 384 and 12.
        view: changes to the light view, a random resized crop of three tenths and more, as in the authors' settings.
        """

        targets: int = 4
        target_scale: tuple[float, float] = (0.15, 0.2)
        target_aspect: tuple[float, float] = (0.75, 1.5)
        context_scale: tuple[float, float] = (0.85, 1.0)
        momentum: float = 0.996
        predictor_width: int | None = None
        predictor_depth: int | None = None
        view: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            for name in ("target_scale", "context_scale", "target_aspect"):
                low, high = getattr(self, name)
                if not 0 < low <= high or (name != "target_aspect" and high > 1):
                    bound = "above 0" if name == "target_aspect" else "in (0, 1]"
                    raise UserError(
                        f"setting 'pretext.{name}' is {(low, high)}; it must be two numbers {bound}, the smaller first"
                    )
            for name in ("targets", "predictor_width", "predictor_depth"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise UserError(f"setting 'pretext.{name}' is {value}; it must be 1 or more")
            if not 0 <= self.momentum <= 1:
                raise UserError(f"setting 'pretext.momentum' is {self.momentum}; it must be in [0, 1]")

    family = "predictive"
    paper = "Assran et al. 2023, arXiv:2301.08243"
    needs = frozenset({"keep"})
    wants = frozenset({"patches"})

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        leave_pooling(encoder)
        self.view = whole_view(modality, config.view, crop_scale=(0.3, 1.0), flip=0.0)
        patches = encoder.grid[0] * encoder.grid[1]
        if patches <= config.targets:
            raise UserError(
                f"setting 'pretext.targets' is {config.targets}; it must be below the picture's {patches} patches"
            )
        width = config.predictor_width or max(4, min(encoder.token_width // 2, 384) // 4 * 4)
        depth = config.predictor_depth or max(1, min((encoder.depth - 1) // 2, 12))
        self.predictor = Filling(encoder, width, depth, encoder.token_width)
        self.target = EMA(encoder, config.momentum, runs=True)

    def sides(self, batch: Batch) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of context and target blocks: the same for all pictures of a step, as in the authors' code.

        Targets shrink, where they must, until as many as there are leave a patch uncovered wherever they lie.
        """
        config, grid = self.config, self.encoder.grid
        u = rng.uniform(rng.fold(batch.seed, batch.step, _SIDES), torch.zeros(1, dtype=torch.int64), 3)[0].tolist()
        bounds = (config.context_scale, config.target_scale, config.target_aspect)
        share, part, aspect = (low + x * (high - low) for x, (low, high) in zip(u, bounds, strict=True))
        height, width = block_side(part, aspect, grid)
        while config.targets * height * width >= grid[0] * grid[1]:
            height, width = (height - 1, width) if height >= width else (height, width - 1)
        return block_side(share, 1.0, grid), (height, width)

    def blocks(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Patches [B, K] that the context encoder sees, and [B, targets, A] that are predicted.

        The authors cut a batch's contexts to its smallest. Here K is the smallest of 64 other layouts of blocks of the same
        sides: it depends on neither the batch nor the ranks, and nothing waits for the device. A picture with more context
        shows a random part of it; one with less (about one in a hundred) also patches around its context block, no target.
        """
        sides, grid, draws = self.sides(batch), self.encoder.grid, 2 * self.config.targets + 2
        n = grid[0] * grid[1]
        like = rng.uniform(rng.fold(batch.seed, batch.step, _LIKE), torch.arange(_OTHERS), draws)
        least = int(multi_block(like, *sides, grid)[0].sum(1).min())
        count = max(1, min(least, n - self.config.targets * sides[1][0] * sides[1][1]))
        seen, covered, at = multi_block(batch.uniform(_PLACES, draws), *sides, grid)
        order = batch.uniform(_ORDER, n) + ~seen + covered  # context first, targets last
        return order.argsort(dim=1)[:, :count], at

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The pictures, and what `blocks` gives."""
        return self.modality.view(batch, self.view, stream=1), *self.blocks(batch)

    def wanted(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] of the whole pictures by the target encoder, each normalised over its features."""
        with torch.no_grad():
            tokens = self.target.module(x).tokens.float()
            return F.layer_norm(tokens, tokens.shape[-1:])

    def forward(self, batch: Batch) -> Step:
        """Loss: smooth L1, as in the authors' code; the paper's text has the squared distance."""
        x, keep, at = self.drawn(batch)
        blocks = at.shape[1]
        seen = self.encoder(x, keep).tokens
        predicted = self.predictor(
            seen.repeat_interleave(blocks, 0), keep.repeat_interleave(blocks, 0), at.flatten(0, 1)
        )
        target = self.wanted(x)
        spread = target.std(0, correction=0).mean()  # at the same place; 0: the targets are the same in all pictures
        target = target.gather(1, at.flatten(1)[..., None].expand(-1, -1, target.shape[2])).view_as(predicted)
        return Step(F.smooth_l1_loss(predicted.float(), target), {"target_std": spread})

    def after_step(self, progress: float) -> None:
        momentum = self.config.momentum
        self.target.update(self.encoder, momentum + (1 - momentum) * progress)

    def show(self, batch: Batch) -> Shown:
        x, keep, at = self.drawn(batch)
        patches = patchify(x, self.encoder.patch)
        pictures = []
        for index in (keep, at.flatten(1)):
            visible = torch.zeros_like(patches).scatter(1, index[..., None].expand(-1, -1, patches.shape[2]), 1.0)
            pictures.append(unpatchify(patches * visible, self.encoder.patch, self.encoder.grid))
        seen = Seen("picture", x), Seen("context", pictures[0]), Seen("targets", pictures[1])
        return Shown(seen, {"patches seen as context": Share(keep.numel(), patches.shape[0] * patches.shape[1])})
