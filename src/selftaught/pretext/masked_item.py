"""Masked-item prediction: which items were hidden in a history?

Sun et al. 2019, "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer" (arXiv
1904.06690), section 3.5; shares as in the authors' code.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from selftaught.batch import Batch, Seen, Share, Shown, Step, Tokens
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.items import softmax_loss
from selftaught.modality.event import EventModality
from selftaught.pretext.base import Pretext

_HIDE, _LAST, _PREFIX = 42, 43, 54  # streams of randomness


class MaskedItem(Pretext):
    """Hidden events are replaced by the mask, always; in some rows the last event alone is, which is what is asked later."""

    @dataclass(frozen=True)
    class Config:
        """share: of a row's events that are hidden, at least one. last: of the rows in which the last event alone is hidden; the
        authors add one such row to every ten others. prefix: such a row ends at any of its events from the second on, so that
        each is asked for after those before it alone, as later; the authors' rows end where the history does.
        """

        share: float = 0.2
        last: float = 0.1
        prefix: bool = True

        def __post_init__(self) -> None:
            for name in ("share", "last"):
                value = getattr(self, name)
                if not (0 < value <= 1 if name == "share" else 0 <= value <= 1):
                    raise UserError(f"pretext.{name} is {value:g}, but must be a share up to 1")

    family = "masked"
    paper = "Sun et al. 2019, arXiv 1904.06690"
    kinds = frozenset({"event"})
    needs = frozenset({"bidirectional_items"})
    wants = frozenset({"histories"})
    # Minutes instead of days: what is asked later is asked half of the time. docs/benchmarks.md has both ways, on two logs.
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {"event": {"share": 0.3, "last": 0.5}}
    collapses = False
    splits_batch = False  # the mean is over the hidden events, and micro-batches hold different numbers of them

    def __init__(self, encoder: Encoder, modality: EventModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: EventModality

    def forward(self, batch: Batch) -> Step:
        x, hidden, shown = self.drawn(batch)
        state = self.encoder(shown).tokens[hidden]
        loss = softmax_loss(state, cast(Any, self.encoder).embeddings, x.ids[hidden])
        return Step(loss, {"hidden": hidden.sum() / x.valid.sum()})

    def drawn(self, batch: Batch) -> tuple[Tokens, Tensor, Tokens]:
        """The histories, which events are hidden, bool [B, L], and what is seen of them."""
        x = self.modality.plain(batch)
        last = batch.uniform(_LAST, 1) < self.config.last
        asked = torch.zeros_like(last)
        if "scored" in batch.inputs:  # asked about the last event: nothing else is hidden
            asked = (batch.inputs["scored"].sum(1) < batch.inputs["length"])[:, None]
        if self.config.prefix:
            x = _cut(x, batch.uniform(_PREFIX, 1), last & ~asked)
        length = x.valid.sum(1)
        rank = batch.uniform(_HIDE, x.ids.shape[1]).masked_fill(~x.valid, 2.0).argsort(1).argsort(1)
        some = rank < (length * self.config.share).round().clamp_min(1)[:, None]
        end = torch.arange(x.ids.shape[1], device=x.ids.device) == length[:, None] - 1
        hidden = torch.where(last | asked, end, some) & x.valid
        return x, hidden, x._replace(ids=x.ids.masked_fill(hidden, self.modality.mask))

    def show(self, batch: Batch) -> Shown:
        x, hidden, shown = self.drawn(batch)
        share = Share(int(hidden.sum()), int(x.valid.sum()), self.config.share)
        return Shown((Seen("encoder reads", shown, x, hidden),), {"events hidden": share})

    def chance(self, batch_size: int) -> float:
        """All items alike."""
        return math.log(len(self.modality.items))


def _cut(x: Tokens, u: Tensor, chosen: Tensor) -> Tokens:
    """The chosen rows [B, 1] up to one of their events, the second at the earliest, by uniform numbers [B, 1]."""
    length = x.valid.sum(1, keepdim=True)
    end = (2 + (u * (length - 1)).long()).minimum(length)
    valid = x.valid & (~chosen | (torch.arange(x.ids.shape[1], device=x.ids.device) < end))
    return Tokens(x.ids.masked_fill(~valid, 0), valid, valid)
