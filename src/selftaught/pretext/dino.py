"""DINO: a student that sees any view of a picture predicts what its own moving average says of the global views.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin 2021, "Emerging Properties in Self-Supervised Vision Transformers".
"""

from typing import Any, ClassVar

import torch

from selftaught.batch import Batch, Step
from selftaught.pretext.distillation import SMALL_MACHINE, Distillation


class DINO(Distillation):
    """L = mean over pairs of views of H(P_t(global view), P_s(another view)), P the softmax over prototypes (algorithm 1)."""

    paper = "Caron et al. 2021, arXiv:2104.14294"
    splits_batch = True  # samples meet in the centre alone, which is fixed within a step
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {"image": SMALL_MACHINE}

    def forward(self, batch: Batch) -> Step:
        views = self.drawn(batch)
        student = self.prototypes(self.head(self.encoded(views))).unflatten(0, (len(views), -1))
        with torch.no_grad():
            encoder, head, prototypes = self.teacher.module.children()
            teacher = prototypes(head(encoder(self.modality.join(views[:2])).pooled)).unflatten(0, (2, -1))
        return Step(*self.distilled(student, teacher))
