"""Masked language modelling: guess hidden tokens from those around them.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (arXiv
1810.04805), section 3.1 and appendix A.1; whole words as in google-research/bert's later release. With order "nsp" it is
all of BERT's pretraining, with "sop" that of ALBERT (Lan et al. 2020, arXiv 1909.11942, section 3.1).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from selftaught.batch import Batch, Seen, Shown, Step, Tokens
from selftaught.encoders import Encoder
from selftaught.heads import PairHead
from selftaught.losses.tokens import token_accuracy, token_cross_entropy
from selftaught.modality.text import TextModality
from selftaught.modality.text.mask import Hidden, Masking, hide, shares
from selftaught.modality.text.pairs import Pairs, pairs, shown
from selftaught.pretext.base import Pretext


class MLM(Pretext):
    """Hide a share of the tokens, and predict what they were; logits are made at hidden positions only."""

    @dataclass(frozen=True)
    class Config(Masking):
        """order: "nsp" or "sop": the texts come in pairs, and the first token tells whether B follows A (see pretexts nsp
        and sop); both losses are added. "none": texts alone.
        """

        order: Literal["none", "nsp", "sop"] = "none"

    family = "masked"
    paper = "Devlin et al. 2019, arXiv 1810.04805"
    kinds = frozenset({"text"})
    needs = frozenset({"bidirectional", "masked_head"})
    wants = frozenset({"documents", "words"})
    collapses = False
    kept = {"masked_head": "head"}  # noqa: RUF012
    splits_batch = False  # the mean is over the tokens of a step, and micro-batches hold different numbers of them

    def __init__(self, encoder: Encoder, modality: TextModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: TextModality
        self.head = cast(Any, encoder).masked_head()
        self.order_head = None if config.order == "none" else PairHead(encoder.token_width)

    def drawn(self, batch: Batch) -> tuple[Pairs | None, Tokens, Hidden]:
        """Pairs, where the texts come in such; the texts; what is left of them."""
        order = self.config.order
        pair = None if order == "none" else pairs(self.modality, batch, order)
        text = self.modality.plain(batch) if pair is None else pair.tokens
        return pair, text, hide(self.modality, text, batch, self.config)

    def forward(self, batch: Batch) -> Step:
        pair, text, (left, chosen) = self.drawn(batch)
        tokens = self.encoder(left).tokens
        logits = self.head(tokens[chosen], self.encoder.embeddings)
        target = text.ids[chosen]
        loss = token_cross_entropy(logits, target)
        metrics = {"accuracy": token_accuracy(logits, target), "masked": chosen.sum() / text.valid.sum()}
        if pair is not None and self.order_head is not None:
            guess, truth = self.order_head(tokens)[pair.known], pair.label[pair.known]
            order = token_cross_entropy(guess, truth)
            loss = loss + order
            metrics |= {"order_loss": order.detach(), "order_accuracy": token_accuracy(guess, truth)}
        return Step(loss, metrics)

    def show(self, batch: Batch) -> Shown:
        pair, text, hidden = self.drawn(batch)
        _, more, answers = Shown((), {}) if pair is None else shown(pair, self.config.order)
        seen = Seen("reads", hidden.shown, text, hidden.chosen)
        return Shown((seen,), {**shares(self.modality, text, hidden, self.config), **more}, answers)

    def chance(self, batch_size: int) -> float:
        """All tokens alike, both orders alike."""
        order = 0.0 if self.config.order == "none" else math.log(2)
        return math.log(self.modality.tokenizer.vocabulary) + order
