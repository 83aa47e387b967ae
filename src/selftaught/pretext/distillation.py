"""What DINO and iBOT have in common: a teacher that is an average of the student, and targets that are centred and sharpened."""

from dataclasses import dataclass, replace
from math import log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selftaught.ema import EMA, cosine
from selftaught.encoders import Encoder
from selftaught.heads import Norm, Prototypes
from selftaught.losses.clusters import across_views, used
from selftaught.modality.base import Modality
from selftaught.pretext.views import MultiCrop, above_zero, shares
from selftaught.ranks import summed

# Minutes instead of days: a teacher that follows sooner, as many prototypes as a few batches can fill, and what keeps a
# small network from giving all pictures one feature, which centring then makes uniform: BatchNorm in the head (ResNets and
# short runs collapsed without), and a teacher that stays sharp.
SMALL_MACHINE: dict[str, Any] = {
    "hidden": 512,
    "out": 128,
    "norm": "batch",
    "prototypes": 1024,
    "local": 4,
    "local_scale": [0.1, 0.4],
    "teacher_temperature": 0.04,
    "momentum": 0.99,
}


class Centre(nn.Module):
    """The moving average of a teacher's scores, over the samples of all ranks (DINO, eq. 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", torch.zeros(width))
        self._seen: list[tuple[Tensor, Tensor]] = []

    def saw(self, scores: Float[Tensor, "n k"]) -> None:
        """Remember a batch's scores for the next `update`; ranks may have different numbers of them."""
        self._seen.append((scores.float().sum(0), self.value.new_full((), len(scores))))

    def update(self, momentum: float) -> None:
        """Move towards the mean of what was seen since the last time. Every rank must call it, also one that saw nothing."""
        nothing = torch.zeros_like(self.value), self.value.new_zeros(())
        total, n = (summed(torch.stack(x).sum(0)) for x in zip(nothing, *self._seen, strict=True))
        self._seen.clear()
        self.value.copy_(torch.where(n > 0, self.value.lerp(total / n.clamp_min(1), 1 - momentum), self.value))


class Distillation(MultiCrop):
    """Student f, head g, prototypes C, all trained; the teacher is their moving average and sees global views alone."""

    @dataclass(frozen=True)
    class Config(MultiCrop.Config):
        """hidden, out, layers, norm: the head's, `out` being the bottleneck that is compared with the prototypes.
        prototypes: outputs of the head. temperature: the student's.
        teacher_temperature: the teacher's; it rises to that from teacher_start, in a line, within the share `warmup` of the run
        (30 of the authors' 100 epochs). momentum: the share of the teacher that stays in a step, at first; it ends at 1.
        centre_momentum: the same of the centre. freeze: the share of the run in which the prototypes stay as they are (one
        epoch of 100).
        """

        hidden: int | None = 2048
        out: int = 256
        layers: int = 3
        norm: Norm = "none"
        local: int = 8
        prototypes: int = 65536
        temperature: float = 0.1
        teacher_temperature: float = 0.07
        teacher_start: float = 0.04
        warmup: float = 0.3
        momentum: float = 0.996
        centre_momentum: float = 0.9
        freeze: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "prototypes", "temperature", "teacher_temperature", "teacher_start", "warmup")
            shares(self, "momentum", "centre_momentum", "freeze")

    family = "self-distillation"
    wants = frozenset({"variety"})
    asymmetric = True
    gelu = True

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        if self.views[1].blur:  # BYOL's second view is hardly blurred; the authors blur half of the small crops
            self.local_view = replace(self.local_view, blur=(config.view or {}).get("blur", 0.5))
        self.prototypes = Prototypes(config.out, config.prototypes)
        initialise(self.head)
        self.teacher = taught_by(self.encoder, self.head, self.prototypes, momentum=config.momentum)
        self.centre = Centre(config.prototypes)
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()))

    def targets(self, scores: Float[Tensor, "*n k"], centre: Centre) -> Float[Tensor, "*n k"]:
        """The teacher's probabilities: centred, so that none wins everywhere, and sharpened, so that not all are alike."""
        c = self.config
        risen = (self.progress / c.warmup).clamp(max=1)
        temperature = c.teacher_start + (c.teacher_temperature - c.teacher_start) * risen
        return ((scores - centre.value) / temperature).softmax(-1)

    def distilled(
        self, student: Float[Tensor, "v n k"], teacher: Float[Tensor, "t n k"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean cross-entropy over all pairs of a teacher's and another student's view (DINO, eq. 3), and metrics."""
        if self.training:
            self.centre.saw(teacher.flatten(0, 1))
        target = self.targets(teacher, self.centre)
        metrics = {"teacher_entropy": torch.special.entr(target).sum(-1).mean(), "prototypes_used": used(target)}
        return across_views(student / self.config.temperature, target), metrics

    def before_step(self, progress: float) -> None:
        if progress < self.config.freeze:
            self.prototypes.freeze()

    def after_step(self, progress: float) -> None:
        self.centre.update(self.config.centre_momentum)
        follow(self.teacher, self.encoder, self.head, self.prototypes, decay=self.decay(progress))
        self.progress.fill_(progress)

    def decay(self, progress: float) -> float:
        """The teacher's momentum, from its first value to 1 along half a cosine."""
        return cosine(self.config.momentum, 1.0, progress)

    def chance(self, batch_size: int) -> float | None:
        """Every prototype as likely as another."""
        return log(self.config.prototypes)


def initialise(head: nn.Module) -> None:
    """The authors' initial weights of a head."""
    for part in head.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def taught_by(*parts: nn.Module, momentum: float) -> EMA:
    """A teacher of copies of the student's parts."""
    return EMA(nn.ModuleList(parts), momentum, runs=True)


def follow(teacher: EMA, *parts: nn.Module, decay: float) -> None:
    """Move the teacher a step towards the student's parts."""
    teacher.update(nn.ModuleList(parts), decay)
