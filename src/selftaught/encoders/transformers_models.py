"""Hugging Face transformers as encoders of text, run without padding.

The tokens of a batch are put one after the other, [1, T]: every layer but attention treats tokens alone, and attention
gets them back in rows. So a padded position costs nothing anywhere else, and no text sees another.
"""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.batch import Encoded, Tokens
from selftaught.encoders.base import Encoder, EncoderConfig
from selftaught.encoders.files import read_tensors
from selftaught.errors import UserError, unknown

try:
    import transformers
    from transformers import AttentionInterface, AutoModel, PreTrainedConfig
except ImportError as error:
    raise UserError("text needs the extra 'text': pip install 'selftaught[text]'") from error

_PACKED = "selftaught_packed"


def _bert(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def _gpt2(width: int, depth: int, heads: int, activation: str, dropout: float = 0.1) -> dict[str, Any]:
    shape = {"n_embd": width, "n_layer": depth, "n_head": heads}
    drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    # GPT-2's spread of initial weights, .02, is for 768 wide; a narrow network that begins with it learns far more slowly.
    spread = {"initializer_range": round(0.02 * (768 / width) ** 0.5, 3)}
    return {
        "model_type": "gpt2",
        **shape,
        **drop,
        **spread,
        "activation_function": activation,
        "bos_token_id": None,
        "eos_token_id": None,
    }


# BERT in the sizes that google-research/bert publishes (Turc et al. 2019, table 1); GPT-2 in nanoGPT's for a CPU, that of
# bert_mini, and its own.
SIZES: dict[str, dict[str, Any]] = {
    "bert_tiny": _bert(128, 2, 2),
    "bert_mini": _bert(256, 4, 4),
    "bert_small": _bert(512, 4, 8),
    "bert_medium": _bert(512, 8, 8),
    "bert_base": _bert(768, 12, 12),
    "gpt2_nano": _gpt2(128, 4, 4, "gelu", dropout=0.0),
    "gpt2_mini": _gpt2(256, 4, 4, "gelu"),
    "gpt2": _gpt2(768, 12, 12, "gelu_pytorch_tanh"),
}


class Packing(NamedTuple):
    """Where the T packed tokens of a batch lie in its rows: flat int64 [T], into [B * L]; rows (B, L); valid [B, L]. causal: no
    token sees what follows it, whatever the architecture."""

    flat: Tensor
    rows: tuple[int, int]
    valid: Tensor
    causal: bool = False

    @classmethod
    def of(cls, valid: Tensor) -> "Packing":
        return cls(valid.flatten().nonzero()[:, 0], (valid.shape[0], valid.shape[1]), valid)

    def positions(self) -> Tensor:
        """Where each token lies in its row, int64 [T]."""
        return self.flat % self.rows[1]

    def spread(self, packed: Tensor) -> Tensor:
        """[T, ...] to [B, L, ...], zero where there is no token."""
        b, length = self.rows
        out = packed.new_zeros(b * length, *packed.shape[1:])
        return out.index_copy(0, self.flat, packed).unflatten(0, (b, length))


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    """softmax(scale q kT) v. On a CPU in float32 always: torch's bf16 kernel is slower there, in backward several times for short
    rows."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale)
    with torch.autocast("cpu", enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale).bfloat16()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    memory: dict[int, tuple[Tensor, Tensor]] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface for packed tokens: q, k, v [1, H, T, D] -> [1, T, H, D].

    Without a packing it is for rows without padding: q, k, v [B, H, L, D]. memory: keys and values of earlier calls, by
    layer; new ones are put behind them.
    """
    if packing is None:
        if memory is not None:
            layer: Any = module.layer_idx
            if layer in memory:
                key, value = (torch.cat(both, 2) for both in zip(memory[layer], (key, value), strict=True))
            memory[layer] = key, value
        causal = bool(getattr(module, "is_causal", False)) and query.shape[2] > 1
        assert not causal or query.shape[2] == key.shape[2], "several tokens at once have nothing before them"
        out = _attention(query, key, value, None, dropout, causal, scaling)
        return out.transpose(1, 2), None
    # Heads before tokens only inside the rows: [B, H, L, D].
    q, k, v = (packing.spread(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
    causal = packing.causal or bool(
        getattr(module, "is_causal", False)
    )  # what lies behind the end of a text is never looked at then
    mask = None if causal else packing.valid[:, None, None, :]
    out = _attention(q, k, v, mask, dropout, causal, scaling)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, packing.flat)[None], None


AttentionInterface.register(_PACKED, _attend)


class TransformersEncoder(Encoder):
    """A transformers model that reads tokens: pooled is the mean over them.

    abilities: "causal" of those in which a token sees what lies before it alone; the others are "bidirectional" and have a
    "masked_head", a "generator" and a "decoder" (see Encoder.abilities).
    """

    def __init__(self, config: EncoderConfig, model: Any) -> None:
        super().__init__()
        causal = model.config.model_type == "gpt2"
        self.abilities = frozenset({"causal"} if causal else {"bidirectional", "masked_head", "generator", "decoder"})
        self.config, self.model = config, model
        self.width = self.token_width = int(model.config.hidden_size)
        self.depth = int(model.config.num_hidden_layers) + 1

    @property
    def embeddings(self) -> Tensor:
        """The table of token embeddings [V, D]; heads that predict tokens are tied to it."""
        return self.model.get_input_embeddings().weight

    def forward(self, inputs: Tokens, keep: Tensor | None = None) -> Encoded:
        """Tokens [B, L] -> tokens [B, L, D], zero where there is none; pooled [B, D]."""
        if keep is not None:
            raise UserError(f"encoder '{self.config.name}' hides tokens by its mask token and cannot skip them")
        valid = inputs.valid
        # Rows of one running text: nothing to leave out, and moving tokens about would cost a tenth of a small step.
        if "causal" in self.abilities and bool(valid.all()):
            tokens = self.follow(inputs.ids, None)
            return Encoded(tokens, tokens.mean(1), valid)
        packing = Packing.of(valid)
        # An architecture that knows no segments tells two texts by the [SEP] between them.
        known = inputs.segments is not None and getattr(self.model.config, "type_vocab_size", 0) > 1
        segments = {"token_type_ids": inputs.segments[valid][None]} if known and inputs.segments is not None else {}
        found = self.model(
            input_ids=inputs.ids[valid][None],
            position_ids=packing.positions()[None],
            packing=packing,
            use_cache=False,
            **segments,
        ).last_hidden_state
        tokens = packing.spread(found[0])
        count = valid.sum(1, keepdim=True).clamp_min(1)
        return Encoded(tokens, tokens.sum(1) / count.to(tokens.dtype), valid)

    def follow(self, ids: Tensor, memory: dict[int, tuple[Tensor, Tensor]] | None) -> Tensor:
        """Encode ids [B, L] after those of earlier calls with the same `memory`, an empty dict at first: tokens [B, L, D].

        Only of an encoder that is "causal", and with L = 1 after the first call. Together the calls may not hold more
        tokens than the encoder reads. None: nothing was before, and nothing is kept.
        """
        begin = memory[0][0].shape[2] if memory else 0
        at = torch.arange(begin, begin + ids.shape[1], device=ids.device)[None]
        found = self.model(input_ids=ids, position_ids=at, packing=None, memory=memory, use_cache=False)
        return found.last_hidden_state

    def masked_head(self) -> "MaskedHead":
        """The head that predicts hidden tokens, of the design that belongs to this architecture.

        Fresh, or that of the file the encoder's weights come from, where it holds one.
        """
        c = self.model.config
        head = MaskedHead(c.hidden_size, c.vocab_size, c.layer_norm_eps, c.initializer_range)
        if self.config.weights_file is not None:
            given = read_tensors(self.config.weights_file)
            found = {ours: given[theirs] for ours, theirs in MaskedHead.NAMES.items() if theirs in given}
            if len(found) == len(MaskedHead.NAMES):
                head.load_state_dict(found)
        return head

    def generator(self, share: float) -> "Generator":
        """A fresh network that is `share` as wide and predicts tokens from this one's embeddings, ELECTRA's generator."""
        return Generator(self, share)

    def decoder(self) -> "TiedDecoder":
        """What writes a text from one vector, with this encoder's own layers."""
        return TiedDecoder(self)

    def adapted(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this network from a file of transformers', of the bare model or of one with a head."""
        prefix, found = self.model.base_model_prefix, {}
        for name in self.state_dict():
            bare = name.removeprefix("model.")
            for given in (f"model.{prefix}.{bare}", name, f"model.{bare.removeprefix('encoder.')}"):
                if given in weights:
                    found[name] = weights[given]
                    break
        return found

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, i for the i-th layer, `depth` for what follows."""
        if found := re.search(r"\b(?:layers?|h)\.(\d+)\.", name):
            return int(found.group(1)) + 1
        return 0 if re.search(r"embeddings|\bw[tp]e\b", name) else self.depth


class Generator(nn.Module):
    """A narrow masked language model on the embeddings of another encoder (BERT), which it shares.

    Its layers, heads and feed-forward width are `share` of the encoder's, at least one head; its depth is the same.
    The encoder is given at each call, so that the embeddings are one tensor with its and are saved once.
    """

    def __init__(self, encoder: TransformersEncoder, share: float) -> None:
        super().__init__()
        c = copy.deepcopy(encoder.model.config)
        heads = max(1, round(c.num_attention_heads * share))
        c.hidden_size = max(1, round(c.hidden_size * share / heads)) * heads
        c.num_attention_heads, c.intermediate_size = heads, max(1, round(c.intermediate_size * share))
        self.project = nn.Linear(encoder.width, c.hidden_size)
        self.layers = type(encoder.model.encoder)(c)
        self.head = MaskedHead(c.hidden_size, c.vocab_size, c.layer_norm_eps, c.initializer_range, out=encoder.width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=c.initializer_range)
                nn.init.zeros_(layer.bias)

    def forward(self, encoder: TransformersEncoder, inputs: Tokens, at: Tensor) -> Tensor:
        """Logits [n, V] of the n tokens that `at`, bool [B, L], names."""
        packing = Packing.of(inputs.valid)
        x = encoder.model.embeddings(input_ids=inputs.ids[inputs.valid][None], position_ids=packing.positions()[None])
        x = self.layers(self.project(x), attention_mask=None, packing=packing, use_cache=False).last_hidden_state
        return self.head(x[0][at[inputs.valid]], encoder.embeddings)


class TiedDecoder(nn.Module):
    """The layers of an encoder (BERT) run from left to right, each with a look at one vector between attention and
    feed-forward: TSDAE's decoder, tied to the encoder.

    Cross-attention to a single vector s gives it all its weight, whatever the query: W_o W_v s, so it needs neither queries nor
    keys. The encoder is given at each call, so that its layers are saved once.
    """

    def __init__(self, encoder: TransformersEncoder) -> None:
        super().__init__()
        c, width = encoder.model.config, encoder.width
        layers = range(c.num_hidden_layers)
        self.value, self.out = (nn.ModuleList(nn.Linear(width, width) for _ in layers) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(width, eps=c.layer_norm_eps) for _ in layers)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)
        for layer in (*self.value, *self.out):
            nn.init.normal_(layer.weight, std=c.initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, encoder: TransformersEncoder, text: Tokens, vector: Tensor) -> Tensor:
        """Text [B, L] and a vector for each, [B, D] -> tokens [B, L, D], each of what lies before it and of the vector."""
        packing = Packing.of(text.valid)._replace(causal=True)
        row = packing.flat // packing.rows[1]
        x = encoder.model.embeddings(input_ids=text.ids[text.valid][None], position_ids=packing.positions()[None])
        for layer, value, out, norm in zip(encoder.model.encoder.layer, self.value, self.out, self.norm, strict=True):
            x = layer.attention(x, None, packing=packing)[0]
            x = norm(x + self.dropout(out(value(vector))[row][None]))
            x = layer.output(layer.intermediate(x), x)
        return packing.spread(x[0])


class MaskedHead(nn.Module):
    """BERT's head for hidden tokens: dense, GELU, LayerNorm, then the token embeddings and a bias.

    The embeddings are given at each call, so that they are one tensor with the encoder's and are saved once. out: their
    width, where it is not that of the tokens.
    """

    def __init__(self, width: int, vocabulary: int, eps: float, spread: float, out: int | None = None) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, out or width), nn.LayerNorm(out or width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=spread)
        nn.init.zeros_(self.dense.bias)

    def forward(self, tokens: Tensor, embeddings: Tensor) -> Tensor:
        """tokens [n, D], embeddings [V, D] -> logits [n, V]."""
        return F.linear(self.norm(F.gelu(self.dense(tokens))), embeddings, self.bias)

    NAMES = {  # noqa: RUF012 - ours to BertForMaskedLM's
        "dense.weight": "cls.predictions.transform.dense.weight",
        "dense.bias": "cls.predictions.transform.dense.bias",
        "norm.weight": "cls.predictions.transform.LayerNorm.weight",
        "norm.bias": "cls.predictions.transform.LayerNorm.bias",
        "bias": "cls.predictions.bias",
    }


def describe(name: str) -> dict[str, Any]:
    """The transformers configuration of an encoder as users name it: one of SIZES, or a local Hugging Face folder."""
    if name in SIZES:
        return SIZES[name]
    file = Path(name) / "config.json"
    if not file.is_file():
        raise unknown("encoder of text", name, SIZES)
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"'{file}' is not JSON: {error}") from error
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind not in (known := {size["model_type"] for size in SIZES.values()}):
        # Others would number positions otherwise (RoBERTa) or attend by code of their own, and be wrong in silence.
        raise UserError(
            f"'{file}' is of model_type '{kind}', which is not supported; known: {', '.join(sorted(known))}"
        )
    # `auto_map` names code of the folder's own, which is never run.
    return {k: v for k, v in found.items() if k not in ("auto_map", "architectures", "torch_dtype", "dtype")}


def build_transformers(config: EncoderConfig) -> TransformersEncoder:
    """Build the architecture that `config.options` describes, with random weights."""
    options = {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.size,
        **(config.options or describe(config.name)),
    }
    kind = options.pop("model_type", None)
    more = {"add_pooling_layer": False} if kind == "bert" else {}
    try:
        found: PreTrainedConfig = transformers.AutoConfig.for_model(kind, **options)
        model = AutoModel.from_config(found, attn_implementation=_PACKED, **more)
    except Exception as error:  # transformers' checks of a configuration have errors of their own
        raise UserError(f"encoder '{config.name}' cannot be built: {' '.join(str(error).split())[:200]}") from error
    if found.max_position_embeddings < config.size:
        raise UserError(f"encoder '{config.name}' reads at most {found.max_position_embeddings} tokens; use --size")
    if found.vocab_size < config.vocabulary:
        raise UserError(f"encoder '{config.name}' knows {found.vocab_size} tokens, the tokenizer {config.vocabulary}")
    if not math.isclose(config.drop_path, 0.0):
        raise UserError(f"encoder '{config.name}' has no stochastic depth; leave out encoder.drop_path")
    return TransformersEncoder(config, model)
