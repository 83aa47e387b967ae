"""iBOT: DINO on whole pictures, and the same on each hidden patch, which the teacher sees.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer"; with the KoLeo
regulariser it is the core of DINOv2 (Oquab et al. 2023).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selftaught.batch import Batch, Share, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.heads import ProjectionHead, Prototypes
from selftaught.losses.clusters import koleo, soft_cross_entropy
from selftaught.modality.base import Modality
from selftaught.modality.image.masks import block_draws, block_masks
from selftaught.pretext.distillation import SMALL_MACHINE, Centre, Distillation, follow, initialise, taught_by
from selftaught.pretext.views import above_zero, shares, zero_or_more

_MASKS = 87  # stream of randomness of the first global view's mask; 88 is the second's


class IBOT(Distillation):
    """L = L_view + patch_weight · L_patch (eq. 2, 3): L_view is DINO's, of pooled features; L_patch is the cross-entropy of the
    student's tokens of hidden patches against the teacher's of the same patches of the same view.

    Where the authors read a class token, this reads `pooled`: our encoders have none, and pool the mean of the patches. The
    centre of patches is that of hidden ones, as in DINOv2; iBOT's code has that of all.
    """

    @dataclass(frozen=True)
    class Config(Distillation.Config):
        """masked: the share of global views in which patches are hidden. ratio: bounds of the share of those patches.
        shared_head: whether patches and views share head and prototypes; DINOv2 gives each its own.
        patch_weight: of L_patch. koleo: weight of the KoLeo regulariser on the pooled features of each global view; DINOv2's
        is 0.1, and iBOT has none.
        """

        local: int = 10
        global_scale: tuple[float, float] = (0.25, 1.0)
        local_scale: tuple[float, float] = (0.05, 0.25)
        prototypes: int = 8192
        masked: float = 0.5
        ratio: tuple[float, float] = (0.1, 0.5)
        shared_head: bool = True
        patch_weight: float = 1.0
        koleo: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "masked")
            shares(self, "masked")
            low, high = self.ratio
            if not 0 < low <= high < 1:
                raise UserError(
                    f"setting 'pretext.ratio' is {self.ratio}; it must be two shares above 0 and below 1, in order"
                )
            zero_or_more(self, "patch_weight", "koleo")

    paper = "Zhou et al. 2022, arXiv:2111.07832"
    needs = frozenset({"hide", "sizes"})
    wants = frozenset({"variety", "patches"})
    splits_batch = False  # neighbours are sought within a batch
    # As DINO's; a ViT needs a teacher that is still sharper, and features that are kept apart.
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {
            **SMALL_MACHINE,
            "teacher_start": 0.02,
            "teacher_temperature": 0.03,
            "momentum": 0.95,
            "koleo": 0.1,
            "local": 0,
        }
    }

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.mask_token = nn.Parameter(torch.randn(encoder.token_width) * 0.02)
        self.patch_centre = Centre(config.prototypes)
        if encoder.token_width != encoder.width and config.shared_head:
            raise UserError(
                f"encoder '{encoder.config.name}' pools {encoder.width} features from tokens of {encoder.token_width}, which "
                "cannot share a head; use --set pretext.shared_head=false"
            )
        self.own, self.patch_teacher = nn.ModuleList(), None
        if not config.shared_head:
            width, hidden = encoder.token_width, config.hidden or encoder.token_width
            head = ProjectionHead(width, hidden, config.out, layers=config.layers, norm=config.norm, gelu=True)
            initialise(head)
            self.own += [head, Prototypes(config.out, config.prototypes)]
            self.patch_teacher = taught_by(*self.own, momentum=config.momentum)

    def hidden(self, batch: Batch, views: list[Any]) -> Tensor:
        """Which patches of both global views are hidden, bool [2 N, patches]: none of some views."""
        c, side = self.config, views[0].shape[-1] // self.encoder.patch
        grid = (side, side)
        masks = []
        for stream in (_MASKS, _MASKS + 1):
            u = batch.uniform(stream, 2 + block_draws(grid))
            ratio = c.ratio[0] + u[:, 1] * (c.ratio[1] - c.ratio[0])
            count = (ratio * side**2).round().long().clamp(1, side**2 - 1)
            masks.append(block_masks(u[:, 2:], grid, count * (u[:, 0] < c.masked)))
        return torch.cat(masks)

    def forward(self, batch: Batch) -> Step:
        views = self.drawn(batch)
        whole, hidden = self.modality.join(views[:2]), self.hidden(batch, views)
        with torch.no_grad():
            encoder, *heads = self.teacher.module.children()
            if self.patch_teacher is not None:
                heads += self.patch_teacher.module.children()
            seen = encoder(whole)
            teacher, wanted = self.scores(heads, seen.pooled, seen.tokens[hidden])
        read = self.encoder(whole, hide=(hidden, self.mask_token))
        local = [self.encoder(self.modality.join(views[2:])).pooled] if views[2:] else []
        heads = [self.head, self.prototypes, *self.own]
        student, guess = self.scores(heads, torch.cat([read.pooled, *local]), read.tokens[hidden])
        loss, metrics = self.distilled(student.unflatten(0, (len(views), -1)), teacher.unflatten(0, (2, -1)))
        patch = self.patch_loss(guess, wanted, hidden)
        metrics |= {"views": loss.detach(), "patches": patch.detach()}
        loss = loss + self.config.patch_weight * patch
        if self.config.koleo:
            spread = torch.stack([koleo(view) for view in read.pooled.chunk(2)]).sum()
            metrics["koleo"] = spread.detach()
            loss = loss + self.config.koleo * spread
        return Step(loss, metrics)

    def scores(self, heads: list[nn.Module], pooled: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [m, K] of pooled features and [n, K] of tokens; a head that both share takes them as one batch."""
        head, prototypes, *own = heads
        if own:
            alone = len(tokens) == 1 and self.training and self.config.norm == "batch"  # which BatchNorm refuses
            beside = torch.cat([tokens, torch.zeros_like(tokens)]) if alone else tokens
            return prototypes(head(pooled)), own[1](own[0](beside))[: len(tokens)]
        views, patches = prototypes(head(torch.cat([pooled, tokens]))).split([len(pooled), len(tokens)])
        return views, patches

    def patch_loss(self, scores: Tensor, wanted: Tensor, hidden: Tensor) -> Tensor:
        """Of the student's and the teacher's scores [n, K] of hidden patches: the mean over global views of the mean over a
        view's hidden patches, 0 where it has none."""
        if self.training:
            self.patch_centre.saw(wanted)
        each = soft_cross_entropy(scores / self.config.temperature, self.targets(wanted, self.patch_centre))
        count = hidden.sum(1)
        return (each / count.repeat_interleave(count)).sum() / len(hidden)

    def before_step(self, progress: float) -> None:
        super().before_step(progress)
        if self.own and progress < self.config.freeze:
            self.own[1].freeze()  # type: ignore[operator]

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.patch_centre.update(self.config.centre_momentum)
        if self.patch_teacher is not None:
            follow(self.patch_teacher, *self.own, decay=self.decay(progress))

    def show(self, batch: Batch) -> Shown:
        hidden = self.hidden(batch, self.drawn(batch))
        asked = self.config.masked * sum(self.config.ratio) / 2
        return Shown(super().show(batch).seen, {"patches hidden": Share(int(hidden.sum()), hidden.numel(), asked)})

    def chance(self, batch_size: int) -> float | None:
        """Every prototype as likely as another, of views and of the hidden patches; KoLeo has no such figure."""
        views = super().chance(batch_size)
        return (
            None if views is None or self.config.koleo else views * (1 + self.config.patch_weight * self.config.masked)
        )
