"""S3-Rec: items, their attributes and segments of a history are told from what is around them; next_item goes on from it.

Zhou, Wang, Zhao, Zhu, Wang, Zhang, Wang, Wen 2020, "S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual
Information Maximization" (arXiv 2008.07873), section 4; weights as in the authors' code.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.batch import Batch, Seen, Share, Shown, Step, Tokens
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.contrastive import info_nce
from selftaught.losses.items import beside, bpr_loss
from selftaught.modality.event import EventModality
from selftaught.pretext.base import Pretext
from selftaught.ranks import mean_count

_HIDE, _NEGATIVE, _SEGMENT = 51, 52, 53  # streams of randomness


class S3Rec(Pretext):
    """Events see all others of their history. Some are hidden: of the others their attributes are told (AAP, eq. 5), of the
    hidden ones the item beside one that the history has not (MIP, eq. 6) and its attributes (MAP, eq. 7); and of a history with
    a segment hidden, which of the batch's segments that is (SP, eq. 8). Sums over events, as in the authors' code, over the
    number of all events.
    """

    @dataclass(frozen=True)
    class Config:
        """share: of the events that are hidden, drawn event by event. aap, mip, map, sp: weights of the four losses."""

        share: float = 0.2
        aap: float = 0.2
        mip: float = 1.0
        map: float = 1.0
        sp: float = 0.5

        def __post_init__(self) -> None:
            if not 0 < self.share < 1:
                raise UserError(f"pretext.share is {self.share:g}; it must be a share above 0 and below 1")
            for name in ("aap", "mip", "map", "sp"):
                if getattr(self, name) < 0:
                    raise UserError(f"pretext.{name} is {getattr(self, name):g}; it must be 0 or more")

    family = "masked and contrastive"
    paper = "Zhou et al. 2020, arXiv 2008.07873"
    kinds = frozenset({"event"})
    needs = frozenset({"causal_items"})  # next_item goes on from it
    wants = frozenset({"histories"})
    collapses = False
    splits_batch = False
    kept: ClassVar[dict[str, str]] = {"heads": "heads"}

    def __init__(self, encoder: Encoder, modality: EventModality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        self.modality: EventModality
        if modality.attributes is None or (found := modality.attributes()) is None:
            raise UserError(
                "s3rec tells the attributes of items, and the log has none; add ?items=FILE, a table with a column of attributes"
            )
        self.attributes, width = found, encoder.width
        heads = {name: nn.Linear(width, width) for name in ("aap", "mip", "map", "sp")}  # W of eq. 5 to 8
        self.heads = nn.ModuleDict({**heads, "attributes": nn.Embedding(found.total, width)})
        nn.init.normal_(cast(nn.Embedding, self.heads["attributes"]).weight, std=0.02)

    def forward(self, batch: Batch) -> Step:
        self.attributes = self.attributes.to(batch.index.device)
        c, x = self.config, self.modality.plain(batch)
        hidden = self.hidden(batch, x)
        shown = x._replace(ids=x.ids.masked_fill(hidden, self.modality.mask))
        h = self.encoder(shown, both_ways=True).tokens
        seen = x.valid & ~hidden
        u = batch.uniform(_NEGATIVE, x.ids.shape[1])
        other = beside(batch.inputs["items"], u, len(self.modality.items))[hidden]
        table = cast(Any, self.encoder).embeddings
        mip = bpr_loss(self.heads["mip"](h[hidden]), table, x.ids[hidden], other)
        parts = {
            "aap": self._attributes("aap", h[seen], x.ids[seen]) / mean_count(x.ids[x.valid]),
            "mip": mip * mean_count(x.ids[hidden]) / mean_count(x.ids[x.valid]),
            "map": self._attributes("map", h[hidden], x.ids[hidden]) / mean_count(x.ids[x.valid]),
            "sp": self._segments(batch, x) * len(batch) / mean_count(x.ids[x.valid]),
        }
        loss = c.aap * parts["aap"] + c.mip * parts["mip"] + c.map * parts["map"] + c.sp * parts["sp"]
        return Step(loss, {name: part.detach() for name, part in parts.items()})

    def hidden(self, batch: Batch, x: Tokens) -> Tensor:
        """Which events are hidden, bool [B, L]."""
        return x.valid & (batch.uniform(_HIDE, x.ids.shape[1]) < self.config.share)

    def _attributes(self, name: str, h: Tensor, ids: Tensor) -> Tensor:
        """Sum over events and attributes of the logistic loss of h W a."""
        scores = self.heads[name](h) @ cast(nn.Embedding, self.heads["attributes"]).weight.T
        return F.binary_cross_entropy_with_logits(scores.float(), self.attributes.hot(ids), reduction="sum")

    def _segments(self, batch: Batch, x: Tokens) -> Tensor:
        """Mean of SP over histories: their last state, the segment hidden, beside the last states of all segments."""
        inside = self.segment(batch, x)
        around = x._replace(ids=x.ids.masked_fill(inside, self.modality.mask))
        order = (~inside).to(torch.uint8).argsort(dim=1, stable=True)
        valid = torch.arange(x.ids.shape[1], device=x.ids.device) < inside.sum(1, keepdim=True)
        alone = Tokens(x.ids.gather(1, order).masked_fill(~valid, 0), valid, valid)
        whole, part = (self.encoder(y, both_ways=True).pooled for y in (around, alone))
        return info_nce(self.heads["sp"](whole), part, 1.0, normalized=False).loss

    def segment(self, batch: Batch, x: Tokens) -> Tensor:
        """One run of each history, of 1 to half its events, anywhere, bool [B, L]; of a single event nothing."""
        length, u = x.valid.sum(1, keepdim=True), batch.uniform(_SEGMENT, 2)
        count = 1 + (u[:, :1] * (length // 2)).long().minimum(length // 2 - 1)
        begin = (u[:, 1:] * (length - count + 1)).long().minimum(length - count)
        at = torch.arange(x.ids.shape[1], device=x.ids.device)
        return (at >= begin) & (at < begin + count) & (length > 1)

    def show(self, batch: Batch) -> Shown:
        x = self.modality.plain(batch)
        hidden, inside = self.hidden(batch, x), self.segment(batch, x)
        seen = [
            Seen(name, x._replace(ids=x.ids.masked_fill(what, self.modality.mask)), x, what)
            for name, what in (("events hidden", hidden), ("segment hidden", inside))
        ]
        return Shown(tuple(seen), {"events hidden": Share(int(hidden.sum()), int(x.valid.sum()), self.config.share)})
