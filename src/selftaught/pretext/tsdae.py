"""TSDAE: write a text again from one vector, made of what deletion left of it.

Wang, Reimers, Gurevych 2021, "TSDAE: Using Transformer-based Sequential Denoising Auto-Encoder for Unsupervised Sentence
Embedding Learning" (arXiv 2104.06979), section 3.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

from selftaught.batch import Batch, Seen, Shown, Step, Tokens
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.tokens import token_accuracy, token_cross_entropy
from selftaught.modality.text import TextModality, TextView
from selftaught.pretext.base import Pretext


class TSDAE(Pretext):
    """All that the decoder knows of a text is the encoder's pooled feature; encoder and decoder are tied."""

    @dataclass(frozen=True)
    class Config:
        """drop: share of the tokens that are deleted before the encoder reads the text; the paper's best."""

        drop: float = 0.6

        def __post_init__(self) -> None:
            if not 0 <= self.drop < 1:
                raise UserError(f"pretext.drop is {self.drop:g}, but must be a share from 0 to below 1")

    family = "generative"
    paper = "Wang et al. 2021, arXiv 2104.06979"
    kinds = frozenset({"text"})
    needs = frozenset({"decoder", "masked_head"})
    wants = frozenset({"documents", "words"})
    collapses = False
    splits_batch = False  # the mean is over the tokens of a step, and micro-batches hold different numbers of them

    def __init__(self, encoder: Encoder, modality: TextModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: TextModality
        self.view = TextView(drop=config.drop)
        self.decoder = cast(Any, encoder).decoder()
        self.head = cast(Any, encoder).masked_head()

    def drawn(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """The texts, and what deletion left of them."""
        return self.modality.plain(batch), self.modality.view(batch, self.view, stream=1)

    def forward(self, batch: Batch) -> Step:
        text, left = self.drawn(batch)
        written = self.decoder(self.encoder, text, self.encoder(left).pooled)
        guessed = text.valid[:, 1:]  # each token from those before it
        logits = self.head(written[:, :-1][guessed], self.encoder.embeddings)
        target = text.ids[:, 1:][guessed]
        kept = left.valid.sum() / text.valid.sum()
        return Step(token_cross_entropy(logits, target), {"accuracy": token_accuracy(logits, target), "kept": kept})

    def show(self, batch: Batch) -> Shown:
        text, left = self.drawn(batch)
        seen = Seen("decoder writes", text), Seen("encoder reads", left)
        return Shown(seen, self.modality.shares(batch, self.view, [left]))

    def chance(self, batch_size: int) -> float:
        """All tokens alike."""
        return math.log(self.modality.tokenizer.vocabulary)
