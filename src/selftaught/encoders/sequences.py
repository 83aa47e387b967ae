"""Small Transformers over a history of items: SASRec (Kang & McAuley 2018), which looks back, and BERT4Rec (Sun et al. 2019)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.batch import Encoded, Tokens
from selftaught.encoders.base import Encoder, EncoderConfig, item_scores
from selftaught.encoders.packing import Packing, attend
from selftaught.errors import UserError

_SHAPES = {"small": {"width": 64, "layers": 2, "heads": 2}, "base": {"width": 256, "layers": 2, "heads": 4}}
SIZES: dict[str, dict[str, Any]] = {
    f"{family}_{size}": {"model_type": family, **shape, "dropout": 0.2, "spread": 0.02}
    for family in ("sasrec", "bert4rec")
    for size, shape in _SHAPES.items()
}
# A tower reads items by their words (`features` numbers of each), so that one nobody had yet has an embedding too.
SIZES |= {f"tower_{size}": {**SIZES[f"sasrec_{size}"], "features": 0} for size in _SHAPES}


class Block(nn.Module):
    """Attention and a feed-forward network. SASRec normalises before each (its code: the queries alone; here keys and values
    too) and has a narrow one with ReLU; BERT4Rec normalises after each and has one four times as wide, with GELU."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.rate, self.before = heads, dropout, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        inner = width if causal else 4 * width
        act: nn.Module = nn.ReLU() if causal else nn.GELU()
        self.mlp = nn.Sequential(nn.Linear(width, inner), act, nn.Dropout(dropout), nn.Linear(inner, width))
        self.dropout = nn.Dropout(dropout)

    def attend(self, x: Tensor, packing: Packing) -> Tensor:
        """What each event finds among those of its history that it sees."""
        q, k, v = self.qkv(x).unflatten(1, (3, 1, self.heads, -1)).permute(1, 2, 3, 0, 4)
        found, _ = attend(self, q, k, v, None, self.rate if self.training else 0.0, packing=packing)
        return self.dropout(self.out(found[0].flatten(1)))

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Packed events [T, D], as they lie in their rows."""
        if self.before:
            x = x + self.attend(self.norm(x), packing)
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        x = self.norm(x + self.attend(x, packing))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class ItemTower(nn.Module):
    """Item embeddings from what is known of the items: unit vectors, all as long."""

    def __init__(self, vocabulary: int, features: int, width: int, spread: float) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(vocabulary, features))
        self.features: Tensor
        self.enter, self.leave = nn.Linear(features, 2 * width), nn.Linear(2 * width, width)
        self.length = nn.Parameter(torch.tensor(spread * width**0.5))

    @property
    def weight(self) -> Tensor:
        """The table [V + 2, D]; no event (row 0) and the mask (the last one) are zero."""
        x = self.leave(F.relu(self.enter(self.features[1:-1])))
        x = self.length * x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-12)
        return F.pad(x, (0, 0, 1, 1))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of ids."""
        return F.embedding(ids, self.weight)


class Network(nn.Module):
    """The parts of an encoder of histories. scale: of the item embeddings, the root of their width in SASRec."""

    def __init__(self, vocabulary: int, size: int, options: dict[str, Any]) -> None:
        super().__init__()
        width, rate, self.causal = options["width"], options["dropout"], options["model_type"] == "sasrec"
        self.scale = width**0.5 if self.causal else 1.0
        self.items: nn.Embedding | ItemTower = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(size, width)
        self.enter: nn.Module = nn.Identity() if self.causal else nn.LayerNorm(width)
        self.dropout = nn.Dropout(rate)
        self.layers = nn.ModuleList(Block(width, options["heads"], rate, self.causal) for _ in range(options["layers"]))
        norm = nn.LayerNorm(width)
        self.leave = norm if self.causal else nn.Sequential(nn.Linear(width, width), nn.GELU(), norm)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=options["spread"])
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if options.get("features"):
            self.items = ItemTower(vocabulary, options["features"], width, options["spread"])

    def forward(self, ids: Tensor, positions: Tensor, packing: Packing) -> Tensor:
        """States [T, D] of packed events, ids and positions [T]."""
        x = self.dropout(self.enter(self.items(ids) * self.scale + self.positions(positions)))
        for layer in self.layers:
            x = layer(x, packing)
        return self.leave(x)


class SequenceEncoder(Encoder):
    """Histories `Tokens` -> Encoded. pooled is the state of the last event (SASRec), the mean (BERT4Rec); zero of no event.

    Events are packed, so padding costs nothing. Rows are padded on their right, but positions are counted so that the last event
    of a row always has the last one, as with the padding on the left of the papers: how long ago an event was says more than
    how early it came.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        o = config.options
        width, self.causal = o["width"], o["model_type"] == "sasrec"
        if width % o["heads"]:
            raise UserError(
                f"an encoder {width} wide cannot have {o['heads']} heads; use a number that divides {width}"
            )
        self.config, self.width, self.token_width = config, width, width
        self.abilities = frozenset({"items", "causal_items" if self.causal else "bidirectional_items"})
        self.abilities |= {"item_words"} if o.get("features") else set()
        self.depth = o["layers"] + 1
        self.model = Network(config.vocabulary, config.size, o)

    @property
    def embeddings(self) -> Tensor:
        """The table of item embeddings [V + 2, D]: row 0 is no event, the last row the mask."""
        return self.model.items.weight

    def forward(self, inputs: Tokens, keep: Tensor | None = None, both_ways: bool = False) -> Encoded:
        """Events [B, L] -> tokens [B, L, D], zero where there is none; pooled [B, D].

        both_ways: each event sees what comes after it, too, whatever the architecture.
        """
        if keep is not None:
            raise UserError(f"encoder '{self.config.name}' hides events by its mask and cannot skip them")
        ids, valid = inputs.ids, inputs.valid
        if ids.shape[1] > self.config.size:
            raise UserError(f"encoder '{self.config.name}' reads at most {self.config.size} events; use --size")
        length = valid.sum(1, keepdim=True)
        at = torch.arange(ids.shape[1], device=ids.device)
        position = (self.config.size - length + at).clamp_max(self.config.size - 1)
        packing = Packing.of(valid)._replace(causal=self.causal and not both_ways)
        x = packing.spread(self.model(packing.pack(ids), packing.pack(position), packing))
        if self.causal:
            end = (length - 1).clamp_min(0)[:, :, None].expand(-1, -1, self.width)
            pooled = x.gather(1, end)[:, 0] if ids.shape[1] else x.sum(1)
        else:
            pooled = x.sum(1) / length.clamp_min(1).to(x.dtype)
        return Encoded(x, pooled, valid)

    def next(self, inputs: Tokens) -> Tensor:
        """What is compared with the embeddings to tell the next item, [B, D]: the last event's state, or that of a mask behind
        the history."""
        if self.causal:
            return self(inputs).pooled
        length = inputs.valid.sum(1, keepdim=True)
        if inputs.ids.shape[1] == self.config.size:  # room for the mask: the oldest event of the longest rows goes
            full = length == self.config.size
            ids = torch.where(full, inputs.ids.roll(-1, 1), inputs.ids)
            length = length - full.long()
        else:
            ids = F.pad(inputs.ids, (0, 1))
        at = torch.arange(ids.shape[1], device=ids.device)
        ids = torch.where(at == length, self.config.vocabulary - 1, ids)
        valid = at <= length
        tokens = self(Tokens(ids.masked_fill(~valid, 0), valid, valid)).tokens
        return tokens.gather(1, length[:, :, None].expand(-1, -1, self.width))[:, 0]

    def know(self, features: Tensor) -> None:
        """Take up what is known of the items [V + 2, F]; of an encoder that can "item_words"."""
        tower = self.model.items
        assert isinstance(tower, ItemTower)
        tower.features.copy_(features)

    def scores(self, vectors: Tensor) -> Tensor:
        """Of states [n, D] the scores [n, V + 2] of all items; -inf for what is none."""
        return item_scores(vectors, self.embeddings)

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, i for the i-th layer, `depth` for what follows."""
        if ".layers." in name:
            return int(name.partition(".layers.")[2].partition(".")[0]) + 1
        return 0 if "items" in name or "positions" in name or "enter" in name else self.depth
