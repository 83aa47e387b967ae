"""Masked language modelling: guess hidden tokens from those around them.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (arXiv
1810.04805), section 3.1 and appendix A.1; whole words as in google-research/bert's later release.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from selftaught.batch import Batch, Step, Tokens
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.tokens import token_cross_entropy
from selftaught.modality.text import TextModality
from selftaught.modality.text.mask import choose, corrupt, how_many
from selftaught.pretext.base import Pretext

_CHOICE, _SHOWN, _RANDOM = 1, 2, 3  # streams of randomness


class MLM(Pretext):
    """Hide a share of the tokens, and predict what they were; logits are made at hidden positions only."""

    @dataclass(frozen=True)
    class Config:
        """mask: share of a sequence's tokens, special ones counted, that is guessed: max(1, round(mask * length)).
        keep, random: of those, the shares shown as they are and replaced by any token; the rest becomes [MASK].
        words: hide whole words.
        """

        mask: float = 0.15
        keep: float = 0.1
        random: float = 0.1
        words: bool = False

    family = "masked"
    paper = "Devlin et al. 2019, arXiv 1810.04805"
    kinds = frozenset({"text"})
    needs = frozenset({"masked_head"})
    wants = frozenset({"documents", "words"})
    collapses = False
    kept = {"masked_head": "head"}  # noqa: RUF012
    splits_batch = False  # the mean is over the tokens of a step, and micro-batches hold different numbers of them

    def __init__(self, encoder: Encoder, modality: TextModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: TextModality
        for name, value in (("mask", config.mask), ("keep + random", config.keep + config.random)):
            if not 0 <= value <= 1 or (name == "mask" and value == 0):
                raise UserError(f"pretext.{name} is {value:g}, but must be a share between 0 and 1")
        self.head = cast(Any, encoder).masked_head()

    def hide(self, batch: Batch) -> tuple[Tokens, Tokens, Tensor]:
        """(the texts, what is shown of them, which tokens are guessed, bool [B, L])."""
        c, text = self.config, self.modality.plain(batch)
        width = text.ids.shape[1]
        starts = text.starts if c.words else torch.ones_like(text.starts)
        chosen = choose(
            self.modality.maskable(text), starts, how_many(text.valid, c.mask), batch.uniform(_CHOICE, width)
        )
        tokenizer = self.modality.tokenizer
        ids = corrupt(
            *(text.ids, chosen, batch.uniform(_SHOWN, width), batch.uniform(_RANDOM, width)),
            mask=tokenizer.mask,
            vocabulary=tokenizer.vocabulary,
            keep=c.keep,
            random=c.random,
        )
        return text, text._replace(ids=ids), chosen

    def forward(self, batch: Batch) -> Step:
        text, shown, chosen = self.hide(batch)
        hidden = self.encoder(shown).tokens[chosen]
        logits = self.head(hidden, self.encoder.embeddings)
        target = text.ids[chosen]
        loss = token_cross_entropy(logits, target)
        accuracy = (logits.detach().argmax(1) == target).sum() / max(1, len(target))
        share = chosen.sum() / text.valid.sum()
        return Step(loss, {"accuracy": accuracy, "masked": share})

    def chance(self, batch_size: int) -> float:
        """All tokens alike."""
        return math.log(self.modality.tokenizer.vocabulary)
