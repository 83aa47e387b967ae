"""ELECTRA: tell tokens that a small generator replaced from those that were there.

Clark, Luong, Le, Manning 2020, "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators" (arXiv
2003.10555), section 2; details as in google-research/electra.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from selftaught.batch import Batch, Seen, Shown, Step, Tokens
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.tokens import token_binary_cross_entropy, token_cross_entropy
from selftaught.modality.text import TextModality
from selftaught.modality.text.mask import Hidden, Masking, hide, shares
from selftaught.pretext.base import Pretext

_SAMPLE = 21  # stream of randomness


class ELECTRA(Pretext):
    """Generator G fills hidden tokens with samples; the encoder D says of every token whether it was replaced."""

    @dataclass(frozen=True)
    class Config(Masking):
        """generator: width of G as a share of D's. weight: of D's loss (lambda, eq. 3). Of the hidden tokens G sees 15 % as
        they are, and none at random.
        """

        keep: float = 0.15
        random: float = 0.0
        generator: float = 0.25
        weight: float = 50.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.generator <= 1:
                raise UserError(f"pretext.generator is {self.generator:g}, but must be a share between 0 and 1")
            if not self.weight > 0:
                raise UserError(f"pretext.weight is {self.weight:g}; it must be above 0")

    family = "masked"
    paper = "Clark et al. 2020, arXiv 2003.10555"
    kinds = frozenset({"text"})
    needs = frozenset({"bidirectional", "generator"})
    wants = frozenset({"documents", "words"})
    collapses = False
    splits_batch = False  # the means are over the tokens of a step, and micro-batches hold different numbers of them

    def __init__(self, encoder: Encoder, modality: TextModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: TextModality
        self.generator = cast(Any, encoder).generator(config.generator)
        self.head = nn.Sequential(nn.Linear(encoder.width, encoder.width), nn.GELU(), nn.Linear(encoder.width, 1))

    def drawn(self, batch: Batch) -> tuple[Tokens, Hidden]:
        """The texts, and what the generator sees of them."""
        text = self.modality.plain(batch)
        return text, hide(self.modality, text, batch, self.config)

    def forward(self, batch: Batch) -> Step:
        text, (left, chosen) = self.drawn(batch)
        logits = self.generator(self.encoder, left, chosen)
        target = text.ids[chosen]
        guess = sample(logits.detach(), batch.uniform(_SAMPLE, text.ids.shape[1])[chosen])  # no gradient through it
        filled = text._replace(ids=text.ids.masked_scatter(chosen, guess))
        replaced = filled.ids != text.ids  # a guess that is right counts as original
        verdict = self.head(self.encoder(filled).tokens[text.valid])[:, 0]
        truth = replaced[text.valid]
        mlm, found = token_cross_entropy(logits, target), token_binary_cross_entropy(verdict, truth)
        metrics = {
            "generator_loss": mlm.detach(),
            "found_loss": found.detach(),
            "accuracy": ((verdict.detach() > 0) == truth).float().mean(),
            "replaced": truth.float().mean(),
        }
        return Step(mlm + self.config.weight * found, metrics)

    def show(self, batch: Batch) -> Shown:
        """What the generator reads; what the encoder reads are its samples, which change as it learns."""
        text, hidden = self.drawn(batch)
        seen = Seen("generator reads", hidden.shown, text, hidden.chosen)
        return Shown((seen,), shares(self.modality, text, hidden, self.config))

    def chance(self, batch_size: int) -> float:
        """All tokens alike for the generator, both answers alike for the encoder."""
        return math.log(self.modality.tokenizer.vocabulary) + self.config.weight * math.log(2)


def sample(logits: Tensor, u: Tensor) -> Tensor:
    """A draw from softmax(logits) for each row, int64 [n], from uniform numbers [n]: the inverse of its distribution."""
    cumulated = logits.double().softmax(1).cumsum(1)
    return torch.searchsorted(cumulated, u.double()[:, None], right=True)[:, 0].clamp_max(logits.shape[1] - 1)
