"""Causal language modelling: guess each token from those before it, by maximum likelihood.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), section 2, eq. 1.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.batch import Batch, Seen, Shown, Step, Tokens
from selftaught.encoders import Encoder
from selftaught.losses.tokens import token_accuracy, token_cross_entropy
from selftaught.modality.text import TextModality
from selftaught.pretext.base import Pretext

_WINDOW = 1  # stream of randomness


class CLM(Pretext):
    """The sum over positions of -log p(token | tokens before it); all positions of a text are trained at once.

    A text is read from its beginning, in pieces between [CLS] and [SEP], which is guessed where a document ends and not where
    a piece ends by its length; a running text (text.running=true) in windows that begin anywhere and hold no special token.
    """

    @dataclass(frozen=True)
    class Config:
        """Nothing to set: the likelihood has no parameters."""

    family = "generative"
    paper = "Radford et al. 2019, GPT-2"
    kinds = frozenset({"text"})
    needs = frozenset({"causal"})
    wants = frozenset({"documents", "words"})
    collapses = False
    running = True
    continues = True
    splits_batch = False  # the mean is over the tokens of a step, and micro-batches hold different numbers of them

    def __init__(self, encoder: Encoder, modality: TextModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: TextModality

    def drawn(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """The texts, and what is read of them: the last token of each is read by none, it is guessed only."""
        text = self.modality.window(batch, _WINDOW)
        return text, text._replace(ids=text.ids[:, :-1], valid=text.valid[:, 1:], starts=text.starts[:, :-1])

    def guessed(self, batch: Batch, before: Tokens) -> Tensor:
        """After which tokens the next is guessed, bool [B, L]."""
        if self.modality.running:
            return before.valid
        ends = batch.inputs["edges"][:, 1:]
        return torch.where(ends, before.valid, F.pad(before.valid[:, 1:], (0, 1)))

    def forward(self, batch: Batch) -> Step:
        text, before = self.drawn(batch)
        guessed = self.guessed(batch, before)
        hidden = self.encoder(before).tokens[guessed]
        logits = hidden @ cast(Any, self.encoder).embeddings.T  # tied, as in GPT-2
        target = text.ids[:, 1:][guessed]
        return Step(token_cross_entropy(logits, target), {"accuracy": token_accuracy(logits, target)})

    def show(self, batch: Batch) -> Shown:
        return Shown((Seen("reads", self.drawn(batch)[1]),), {})

    def chance(self, batch_size: int) -> float:
        """All tokens alike."""
        return math.log(self.modality.tokenizer.vocabulary)
