"""export: the encoder in the layout that other libraries open."""

from pathlib import Path
from typing import Any

from selftaught import bundle, disk
from selftaught.errors import UserError


def export(run: Path, out: Path) -> Path:
    """A Hugging Face folder of an encoder of text: weights, configuration, tokenizer, and the head that predicts tokens
    where pretraining made one. `AutoModelForMaskedLM` (of GPT-2: `AutoModelForCausalLM`), `AutoModel` and `AutoTokenizer`
    open it.

    The tokenizer puts around a text what the bundle does ([CLS] and [SEP]; around running text nothing), so that both give the
    same features. Of a causal model of whole texts it thus ends a prompt in [SEP] too: leave that out before `generate`.
    """
    loaded = bundle.load(run)
    if loaded.modality.name != "text":
        raise UserError(
            f"'{run}' is an encoder of {loaded.modality.name} data; only encoders of text are exported in this version"
        )
    if out.exists():
        raise UserError(f"'{out}' exists; name another folder with --out, or remove it")
    head = bundle.masked_head(run, loaded)
    with disk.appearing(out) as folder:
        _transformers(loaded, head, folder)
    return out


def _transformers(loaded: bundle.Bundle, head: Any, out: Path) -> None:
    from tokenizers import processors
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

    from selftaught.encoders.transformers_models import bare_model
    from selftaught.modality.text import TextModality

    encoder: Any = loaded.encoder
    assert isinstance(loaded.modality, TextModality)
    tokenizer, config = loaded.modality.tokenizer, encoder.model.config
    config.pad_token_id, config.bos_token_id, config.eos_token_id = tokenizer.pad, tokenizer.first, tokenizer.last
    if hasattr(config, "cls_token_id"):
        config.cls_token_id, config.sep_token_id = tokenizer.first, tokenizer.last
    weights = encoder.model.state_dict()
    if "causal" in encoder.abilities:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        weights = {f"{model.base_model_prefix}.{name}": value for name, value in weights.items()}
        weights["lm_head.weight"] = encoder.embeddings
    elif head is None:
        model = bare_model(config, "eager")
    else:
        model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
        weights = {f"{model.base_model_prefix}.{name}": value for name, value in weights.items()}
        weights |= head.exported(encoder.embeddings)
    model.load_state_dict(weights)
    model.save_pretrained(out)
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    special = {"unk": tokenizer.unknown, "pad": tokenizer.pad, "cls": tokenizer.first, "sep": tokenizer.last}
    names = {key: backend.id_to_token(number) for key, number in {**special, "mask": tokenizer.mask}.items()}
    framed = processors.TemplateProcessing(
        single=f"{names['cls']} $A {names['sep']}",
        pair=f"{names['cls']} $A {names['sep']} $B:1 {names['sep']}:1",
        special_tokens=[(names["cls"], tokenizer.first), (names["sep"], tokenizer.last)],
    )
    backend.post_processor = None if loaded.modality.running else framed
    # What a pair's second text is known by, where there is such an embedding (transformers leaves it out unless told).
    segments = ["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else []
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=loaded.modality.size,
        model_input_names=["input_ids", *segments, "attention_mask"],
        **{f"{key}_token": name for key, name in names.items()},
    )
    fast.save_pretrained(out)
