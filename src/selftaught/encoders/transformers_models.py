"""Hugging Face transformers as encoders of text, run without padding (see `packing`)."""

import math
import re
from typing import Any

import torch
from torch import Tensor

from selftaught.batch import Encoded, Tokens
from selftaught.encoders.base import Encoder, EncoderConfig
from selftaught.encoders.files import read_tensors
from selftaught.encoders.packing import Packing, attend
from selftaught.encoders.token_heads import Generator, MaskedHead, ModernHead, TiedDecoder, TokenHead
from selftaught.encoders.transformers_sizes import describe
from selftaught.errors import UserError

try:
    import transformers
    from transformers import AttentionInterface, AutoModel, PreTrainedConfig
except ImportError as error:
    raise UserError("text needs the extra 'text': pip install 'selftaught[text]'") from error

_PACKED = "selftaught_packed"
AttentionInterface.register(_PACKED, attend)

_ABILITIES = {
    "bert": {"bidirectional", "masked_head", "generator", "decoder"},
    "modernbert": {"bidirectional", "masked_head"},
    "gpt2": {"causal"},
}
_HEADS: dict[str, type[MaskedHead | ModernHead]] = {"bert": MaskedHead, "modernbert": ModernHead}


class TransformersEncoder(Encoder):
    """A transformers model that reads tokens: pooled is the mean over them.

    abilities: "causal" of those in which a token sees what lies before it alone; the others are "bidirectional" and have a
    "masked_head"; BERT has a "generator" and a "decoder" as well (see Encoder.abilities).
    """

    def __init__(self, config: EncoderConfig, model: Any) -> None:
        super().__init__()
        self.abilities = frozenset(_ABILITIES[model.config.model_type])
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
        segments = (
            {"token_type_ids": packing.pack(inputs.segments)[None]} if known and inputs.segments is not None else {}
        )
        found = self.model(
            input_ids=packing.pack(inputs.ids)[None],
            position_ids=packing.positions()[None],
            packing=packing,
            use_cache=False,
            **segments,
            **self._windows(packing),
        ).last_hidden_state
        tokens = packing.spread(found[0])
        count = valid.sum(1, keepdim=True).clamp_min(1)
        return Encoded(tokens, tokens.sum(1) / count.to(tokens.dtype), valid)

    def _windows(self, packing: Packing) -> dict[str, Any]:
        """Of ModernBERT, what its two kinds of layers see; it would make masks of the packed row otherwise."""
        if self.model.config.model_type != "modernbert":
            return {}
        local = packing.near(self.model.config.sliding_window)
        return {"attention_mask": {"full_attention": None, "sliding_attention": local}}

    def follow(self, ids: Tensor, memory: dict[int, tuple[Tensor, Tensor]] | None) -> Tensor:
        """Encode ids [B, L] after those of earlier calls with the same `memory`, an empty dict at first: tokens [B, L, D].

        Only of an encoder that is "causal", and with L = 1 after the first call. Together the calls may not hold more
        tokens than the encoder reads. None: nothing was before, and nothing is kept.
        """
        begin = memory[0][0].shape[2] if memory else 0
        at = torch.arange(begin, begin + ids.shape[1], device=ids.device)[None]
        found = self.model(input_ids=ids, position_ids=at, packing=None, memory=memory, use_cache=False)
        return found.last_hidden_state

    def masked_head(self) -> TokenHead:
        """The head that predicts hidden tokens, of the design that belongs to this architecture.

        Fresh, or that of the file the encoder's weights come from, where it holds one.
        """
        head = _HEADS[self.model.config.model_type](self.model.config)
        if self.config.weights_file is not None:
            head.fill(read_tensors(self.config.weights_file))
        return head

    def generator(self, share: float) -> Generator:
        """A fresh network that is `share` as wide and predicts tokens from this one's embeddings, ELECTRA's generator."""
        return Generator(self, share)

    def decoder(self) -> TiedDecoder:
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


def bare_model(config: PreTrainedConfig, attention: str) -> Any:
    """transformers' model without a head, with random weights. attention: its name in transformers."""
    more = {"add_pooling_layer": False} if config.model_type == "bert" else {}
    return AutoModel.from_config(config, attn_implementation=attention, **more)


def build_transformers(config: EncoderConfig) -> TransformersEncoder:
    """Build the architecture that `config.options` describes, with random weights."""
    options = {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.size,
        **(config.options or describe(config.name)),
    }
    if "n_positions" in options:  # GPT-2's own name for it, in a folder
        del options["max_position_embeddings"]
    try:
        found: PreTrainedConfig = transformers.AutoConfig.for_model(options.pop("model_type", None), **options)
        model = bare_model(found, _PACKED)
    except Exception as error:  # transformers' checks of a configuration have errors of their own
        raise UserError(f"encoder '{config.name}' cannot be built: {' '.join(str(error).split())[:200]}") from error
    if found.max_position_embeddings < config.size:
        raise UserError(f"encoder '{config.name}' reads at most {found.max_position_embeddings} tokens; use --size")
    if found.vocab_size < config.vocabulary:
        raise UserError(f"encoder '{config.name}' knows {found.vocab_size} tokens, the tokenizer {config.vocabulary}")
    if not math.isclose(config.drop_path, 0.0):
        raise UserError(f"encoder '{config.name}' has no stochastic depth; leave out encoder.drop_path")
    return TransformersEncoder(config, model)
