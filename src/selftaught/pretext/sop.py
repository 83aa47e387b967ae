"""Sentence order prediction: do two consecutive texts come in their order, or swapped?

Lan et al. 2020, "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations" (arXiv 1909.11942),
section 3.1. Topics do not give the answer, as they do with `nsp`. In the paper it goes with `mlm`: pretext.order=sop there.
"""

import math
from dataclasses import dataclass

from selftaught.batch import Batch, Shown, Step
from selftaught.encoders import Encoder
from selftaught.heads import PairHead
from selftaught.losses.tokens import token_accuracy, token_cross_entropy
from selftaught.modality.text import TextModality
from selftaught.modality.text.pairs import pairs, shown
from selftaught.pretext.base import Pretext


class SOP(Pretext):
    """[CLS] A [SEP] B [SEP], A and B consecutive in a document; half of the pairs are swapped."""

    @dataclass(frozen=True)
    class Config:
        """Nothing to set."""

    family = "predictive"
    paper = "Lan et al. 2020, arXiv 1909.11942"
    kinds = frozenset({"text"})
    needs = frozenset({"bidirectional"})
    wants = frozenset({"documents", "words"})
    collapses = False
    splits_batch = False  # the mean is over the texts that could be cut in two

    def __init__(self, encoder: Encoder, modality: TextModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: TextModality
        self.head = PairHead(encoder.token_width)

    def forward(self, batch: Batch) -> Step:
        pair = pairs(self.modality, batch, "sop")
        logits = self.head(self.encoder(pair.tokens).tokens)[pair.known]
        target = pair.label[pair.known]
        metrics = {"accuracy": token_accuracy(logits, target), "swapped": pair.label.float().mean()}
        return Step(token_cross_entropy(logits, target), metrics)

    def show(self, batch: Batch) -> Shown:
        return shown(pairs(self.modality, batch, "sop"), "sop")

    def chance(self, batch_size: int) -> float:
        """Both answers alike."""
        return math.log(2)
