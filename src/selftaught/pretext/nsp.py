"""Next sentence prediction: does the second text follow the first, or is it of another document?

Devlin et al. 2019, BERT (arXiv 1810.04805), section 3.1, task 2. There it is one of two tasks: `mlm` with pretext.order=nsp.
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


class NSP(Pretext):
    """[CLS] A [SEP] B [SEP]; half of the B come from another document, a neighbour in the batch."""

    @dataclass(frozen=True)
    class Config:
        """Nothing to set."""

    family = "predictive"
    paper = "Devlin et al. 2019, arXiv 1810.04805"
    kinds = frozenset({"text"})
    needs = frozenset({"bidirectional"})
    wants = frozenset({"documents", "words"})
    collapses = False
    splits_batch = False  # pairs are made of neighbours in the batch

    def __init__(self, encoder: Encoder, modality: TextModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: TextModality
        self.head = PairHead(encoder.token_width)

    def forward(self, batch: Batch) -> Step:
        pair = pairs(self.modality, batch, "nsp")
        logits = self.head(self.encoder(pair.tokens).tokens)[pair.known]
        target = pair.label[pair.known]
        metrics = {"accuracy": token_accuracy(logits, target), "other": pair.label.float().mean()}
        return Step(token_cross_entropy(logits, target), metrics)

    def show(self, batch: Batch) -> Shown:
        return shown(pairs(self.modality, batch, "nsp"), "nsp")

    def chance(self, batch_size: int) -> float:
        """Both answers alike."""
        return math.log(2)
