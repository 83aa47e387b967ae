"""The architectures of encoders of text, by name or as a local Hugging Face folder describes them."""

import json
from pathlib import Path
from typing import Any

from selftaught.errors import UserError, unknown


def _spread(width: int) -> dict[str, float]:
    """The usual spread of initial weights, .02, is for 768 wide; a narrow network that begins with it learns far more slowly."""
    return {"initializer_range": round(0.02 * (768 / width) ** 0.5, 3)}


def _bert(width: int, depth: int, heads: int) -> dict[str, Any]:
    # Not _spread: pretraining learns sooner with it, but fine-tuned to translate it learned less (docs/benchmarks.md).
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
    return {
        "model_type": "gpt2",
        **shape,
        **drop,
        **_spread(width),
        "activation_function": activation,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _modern(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "modernbert",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 3 * width // 2,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        # The authors pretrain with it on attention's outputs alone; transformers has one rate for those and the weights.
        "attention_dropout": 0.1,
        **_spread(width),
        **{f"{name}_token_id": None for name in ("pad", "bos", "eos", "cls", "sep")},  # the defaults are above our ids
    }


# BERT in the sizes that google-research/bert publishes (Turc et al. 2019, table 1); GPT-2 in nanoGPT's for a CPU, that of
# bert_mini, and its own; ModernBERT in its own (Warner et al. 2024), and narrow ones that end, as it does, on global attention.
SIZES: dict[str, dict[str, Any]] = {
    "bert_tiny": _bert(128, 2, 2),
    "bert_mini": _bert(256, 4, 4),
    "bert_small": _bert(512, 4, 8),
    "bert_medium": _bert(512, 8, 8),
    "bert_base": _bert(768, 12, 12),
    "modernbert_tiny": _modern(128, 4, 2),
    "modernbert_mini": _modern(256, 4, 4),
    "modernbert_base": _modern(768, 22, 12),
    "gpt2_nano": _gpt2(128, 4, 4, "gelu", dropout=0.0),
    "gpt2_mini": _gpt2(256, 4, 4, "gelu"),
    "gpt2": _gpt2(768, 12, 12, "gelu_pytorch_tanh"),
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
