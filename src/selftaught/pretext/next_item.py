"""Next-item prediction: after each event of a history, which item comes next?

Kang, McAuley 2018, "Self-Attentive Sequential Recommendation" (SASRec, arXiv 1808.09781). With the softmax over all items in
place of one negative an event it is known to do markedly better (Klenitskiy, Vasilev 2023, arXiv 2309.07602).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from selftaught.batch import Batch, Seen, Shown, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.items import beside, binary_loss, drawn, sampled_softmax_loss, softmax_loss
from selftaught.modality.event import EventModality
from selftaught.pretext.base import Pretext

_NEGATIVES = 41  # stream of randomness
_SHARED = 1024  # negatives of a step


class NextItem(Pretext):
    """All positions at once: the state of each event is compared with the embedding of the next one's item."""

    @dataclass(frozen=True)
    class Config:
        """loss: "softmax" over all items; "sampled": over `negatives` that a step draws (1024), for large catalogues; "bce": each
        target beside `negatives` of its own that the history has not (1, as in the paper).
        """

        loss: Literal["softmax", "sampled", "bce"] = "softmax"
        negatives: int | None = None

        def __post_init__(self) -> None:
            if self.negatives is not None and self.negatives < 1:
                raise UserError(f"pretext.negatives is {self.negatives}; it must be 1 or more")
            if self.negatives is not None and self.loss == "softmax":
                raise UserError(
                    f"pretext.negatives is {self.negatives}, and the softmax is over all items; leave it out, or set "
                    "pretext.loss=sampled or bce"
                )

    family = "generative"
    paper = "Kang & McAuley 2018, arXiv 1808.09781"
    kinds = frozenset({"event"})
    needs = frozenset({"causal_items"})
    wants = frozenset({"histories"})
    collapses = False
    splits_batch = False  # the mean is over the events of a step, and micro-batches hold different numbers of them

    def __init__(self, encoder: Encoder, modality: EventModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: EventModality

    def forward(self, batch: Batch) -> Step:
        before, target, asked = self.modality.follows(batch)
        h, target = self.encoder(before).tokens[asked], target[asked]
        table, items = cast(Any, self.encoder).embeddings, len(self.modality.items)
        match self.config.loss:
            case "softmax":
                loss = softmax_loss(h, table, target)
            case "sampled":
                # Uniform over all items, the user's later ones too: to spare those would tell the encoder which they are.
                count = self.config.negatives or _SHARED
                u = batch.uniform(_NEGATIVES, -(-count // len(batch)))
                loss = sampled_softmax_loss(h, table, target, drawn(u.flatten()[:count], items))
            case _:
                shape = asked.shape[1], self.config.negatives or 1
                u = batch.uniform(_NEGATIVES, math.prod(shape))
                others = beside(batch.inputs["items"], u, items).unflatten(1, shape)[asked]
                loss = binary_loss(h, table, target, others)
        return Step(loss, {"targets": h.new_full((), len(target), dtype=torch.float32)})

    def show(self, batch: Batch) -> Shown:
        return Shown((Seen("encoder reads", self.modality.follows(batch).before),), {})

    def chance(self, batch_size: int) -> float:
        """All items alike; a logistic loss of both answers alike."""
        return 2 * math.log(2) if self.config.loss == "bce" else math.log(len(self.modality.items))
