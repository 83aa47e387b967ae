"""What pretext tasks put on encoders of text: heads that predict tokens, a generator, a decoder."""

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.batch import Tokens
from selftaught.encoders.packing import Packing

if TYPE_CHECKING:
    from selftaught.encoders.transformers_models import TransformersEncoder


class Generator(nn.Module):
    """A narrow masked language model on the embeddings of another encoder (BERT), which it shares.

    Its layers, heads and feed-forward width are `share` of the encoder's, at least one head; its depth is the same.
    The encoder is given at each call, so that the embeddings are one tensor with its and are saved once.
    """

    def __init__(self, encoder: "TransformersEncoder", share: float) -> None:
        super().__init__()
        c = copy.deepcopy(encoder.model.config)
        heads = max(1, round(c.num_attention_heads * share))
        c.hidden_size = max(1, round(c.hidden_size * share / heads)) * heads
        c.num_attention_heads, c.intermediate_size = heads, max(1, round(c.intermediate_size * share))
        self.project = nn.Linear(encoder.width, c.hidden_size)
        self.layers = type(encoder.model.encoder)(c)
        self.head = MaskedHead(c, out=encoder.width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=c.initializer_range)
                nn.init.zeros_(layer.bias)

    def forward(self, encoder: "TransformersEncoder", inputs: Tokens, at: Tensor) -> Tensor:
        """Logits [n, V] of the n tokens that `at`, bool [B, L], names."""
        packing = Packing.of(inputs.valid)
        x = encoder.model.embeddings(input_ids=packing.pack(inputs.ids)[None], position_ids=packing.positions()[None])
        x = self.layers(self.project(x), attention_mask=None, packing=packing, use_cache=False).last_hidden_state
        return self.head(packing.spread(x[0])[at], encoder.embeddings)


class TiedDecoder(nn.Module):
    """The layers of an encoder (BERT) run from left to right, each with a look at one vector between attention and
    feed-forward: TSDAE's decoder, tied to the encoder.

    Cross-attention to a single vector s gives it all its weight, whatever the query: W_o W_v s, so it needs neither queries nor
    keys. The encoder is given at each call, so that its layers are saved once.
    """

    def __init__(self, encoder: "TransformersEncoder") -> None:
        super().__init__()
        c, width = encoder.model.config, encoder.width
        layers = range(c.num_hidden_layers)
        self.value, self.out = (nn.ModuleList(nn.Linear(width, width) for _ in layers) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(width, eps=c.layer_norm_eps) for _ in layers)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)
        for layer in (*self.value, *self.out):
            nn.init.normal_(layer.weight, std=c.initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, encoder: "TransformersEncoder", text: Tokens, vector: Tensor) -> Tensor:
        """Text [B, L] and a vector for each, [B, D] -> tokens [B, L, D], each of what lies before it and of the vector."""
        packing = Packing.of(text.valid)._replace(causal=True)
        row = packing.row()
        x = encoder.model.embeddings(input_ids=packing.pack(text.ids)[None], position_ids=packing.positions()[None])
        for layer, value, out, norm in zip(encoder.model.encoder.layer, self.value, self.out, self.norm, strict=True):
            x = layer.attention(x, None, packing=packing)[0]
            x = norm(x + self.dropout(out(value(vector))[row][None]))
            x = layer.output(layer.intermediate(x), x)
        return packing.spread(x[0])


class TokenHead(nn.Module):
    """Predicts hidden tokens: dense, activation, LayerNorm, then the token embeddings and a bias.

    The embeddings are given at each call, so that they are one tensor with the encoder's and are saved once.
    """

    NAMES: ClassVar[dict[str, str]]  # ours to those of transformers' model
    TIED: ClassVar[str]  # the embeddings' name there

    def __init__(self, dense: nn.Linear, activation: str, norm: nn.LayerNorm, bias: Tensor | None) -> None:
        super().__init__()
        from transformers.activations import ACT2FN  # here: transformers_models says what is missing, if it is

        self.dense, self.act, self.norm = dense, ACT2FN[activation], norm
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, tokens: Tensor, embeddings: Tensor) -> Tensor:
        """tokens [n, D], embeddings [V, D] -> logits [n, V]."""
        return F.linear(self.norm(self.act(self.dense(tokens))), embeddings, self.bias)

    def fill(self, given: dict[str, Tensor]) -> None:
        """Take its weights from a file of transformers', if all of them are there."""
        names = {ours: self.NAMES[ours] for ours in self.state_dict()}
        if all(theirs in given for theirs in names.values()):
            self.load_state_dict({ours: given[theirs] for ours, theirs in names.items()})

    def exported(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Its weights and the embeddings, as transformers' model names them."""
        return {self.NAMES[ours]: value for ours, value in self.state_dict().items()} | {self.TIED: embeddings}


class MaskedHead(TokenHead):
    """BERT's. out: width of the embeddings, where it is not that of the tokens."""

    NAMES: ClassVar = {
        "dense.weight": "cls.predictions.transform.dense.weight",
        "dense.bias": "cls.predictions.transform.dense.bias",
        "norm.weight": "cls.predictions.transform.LayerNorm.weight",
        "norm.bias": "cls.predictions.transform.LayerNorm.bias",
        "bias": "cls.predictions.bias",
    }
    TIED = "cls.predictions.decoder.weight"

    def __init__(self, c: Any, out: int | None = None) -> None:
        out = out or c.hidden_size
        dense, norm = nn.Linear(c.hidden_size, out), nn.LayerNorm(out, eps=c.layer_norm_eps)
        nn.init.normal_(dense.weight, std=c.initializer_range)
        nn.init.zeros_(dense.bias)
        super().__init__(dense, c.hidden_act, norm, torch.zeros(c.vocab_size))

    def exported(self, embeddings: Tensor) -> dict[str, Tensor]:
        return super().exported(embeddings) | {"cls.predictions.decoder.bias": self.state_dict()["bias"]}


class ModernHead(TokenHead):
    """ModernBERT's: of the biases, those that its configuration has; initial weights as transformers draws them."""

    NAMES: ClassVar = {
        **{f"{part}.{what}": f"head.{part}.{what}" for part in ("dense", "norm") for what in ("weight", "bias")},
        "bias": "decoder.bias",
    }
    TIED = "decoder.weight"

    def __init__(self, c: Any) -> None:
        dense = nn.Linear(c.hidden_size, c.hidden_size, bias=c.classifier_bias)
        norm = nn.LayerNorm(c.hidden_size, eps=c.norm_eps, bias=c.norm_bias)
        std, cut = c.initializer_range / math.sqrt(2 * c.num_hidden_layers), c.initializer_cutoff_factor or 3
        nn.init.trunc_normal_(dense.weight, std=std, a=-cut * std, b=cut * std)
        if c.classifier_bias:
            nn.init.zeros_(dense.bias)
        super().__init__(dense, c.classifier_activation, norm, torch.zeros(c.vocab_size) if c.decoder_bias else None)
