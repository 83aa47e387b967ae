"""generate and fill: what a language model of text says, token by token."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selftaught import bundle, rng
from selftaught.batch import Batch, Tokens
from selftaught.errors import UserError, say
from selftaught.modality.text import TextModality
from selftaught.modality.text.tokenizer import SPECIAL
from selftaught.workflow.prepare import pick_device, positive

_DRAW = 9  # key of the draws
MASK = SPECIAL[-1]


def _text(run: Path, device: str) -> tuple[bundle.Bundle, TextModality, torch.device]:
    loaded, where = bundle.load(run), torch.device(pick_device(device))
    if not isinstance(loaded.modality, TextModality):
        raise UserError(f"'{run}' is an encoder of {loaded.modality.name} data; name a run on text")
    loaded.encoder.to(where)
    return loaded, loaded.modality, where


def generate(run: Path, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int, device: str) -> str:
    """The prompt and how a causal language model continues it, up to the text's end or `tokens` more tokens."""
    positive(tokens=tokens, top_k=top_k)
    if not 0 <= temperature < float("inf"):
        raise UserError(f"--temperature {temperature:g} must be 0 (always the likeliest token) or more, such as 0.8")
    if not prompt:
        raise UserError("the prompt is empty; give at least one character to go on from")
    loaded, modality, where = _text(run, device)
    if not loaded.info.get("continues"):
        raise UserError(
            f"'{run}' was pretrained with {loaded.info.get('pretext', '?')}, which cannot continue a text; "
            "use a run of --pretext clm"
        )
    tokenizer = modality.tokenizer
    begun = tokenizer.encode([prompt])[0].ids.tolist()
    if not begun:
        raise UserError(f"the prompt '{prompt}' holds no token of this model; give it a word")
    if unknown := begun.count(tokenizer.unknown):
        say(f"{unknown} of the prompt's {len(begun)} tokens are unknown to the model ([UNK])")
    found = continuation(loaded.encoder, modality, begun, tokens, temperature, top_k, seed, where)
    before, after = tokenizer.decode(begun), tokenizer.decode(begun + found)
    return prompt + (after.removeprefix(before) if after.startswith(before) else tokenizer.decode(found))


def continuation(
    encoder: Any,
    modality: TextModality,
    begun: list[int],
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    device: torch.device,
    cached: bool = True,
) -> list[int]:
    """Token ids that follow `begun`; the n-th is a function of (seed, n) and of what stands before it.

    Once the text is longer than what was learnt from, its last part is read anew for each token. cached: keep keys and
    values until then; without, the same comes more slowly.
    """
    tokenizer, found = modality.tokenizer, list[int]()
    memory: dict[int, tuple[Tensor, Tensor]] = {}
    first = [] if modality.running else [tokenizer.first]
    barred = torch.tensor([tokenizer.pad, tokenizer.unknown, tokenizer.first, tokenizer.mask], device=device)
    # In pretraining the last [SEP] is read by none, and nothing but that [SEP] is guessed from the token before it.
    longest = modality.room
    while len(found) < tokens:
        text = [*first, *(begun + found)[len(first) - longest :]]
        fits = cached and len(first) + len(begun) + len(found) <= longest
        new = text[-1:] if fits and memory else text
        with torch.inference_mode():
            ids = torch.tensor([new], device=device)
            hidden = encoder.follow(ids, memory if fits else None)[0, -1]
            logits = (encoder.embeddings @ hidden).double().index_fill(0, barred, float("-inf"))
        chosen = _draw(logits, temperature, top_k, seed, len(found))
        if chosen == tokenizer.last and not modality.running:
            break
        found.append(chosen)
    return found


def _draw(logits: Tensor, temperature: float, top_k: int | None, seed: int, nth: int) -> int:
    """One token: the likeliest at temperature 0, else by the probabilities of the top k (None: all)."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.cpu() / temperature
    if top_k is not None and top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[-1], float("-inf"))
    share = scaled.softmax(0).cumsum(0)
    u = rng.uniform(rng.fold(seed, _DRAW), torch.tensor([nth]), 1)[0, 0].double() * share[-1]
    return int(torch.searchsorted(share, u, right=True).clamp_max(len(share) - 1))


def fill(run: Path, text: str, k: int, device: str) -> list[dict[str, Any]]:
    """The k likeliest tokens for each [MASK] of a text, with their probabilities: one row a token."""
    positive(k=k)
    if MASK not in text:
        raise UserError(f"the text holds no {MASK}; write {MASK} where a token is to be guessed")
    loaded, modality, where = _text(run, device)
    head = bundle.masked_head(run, loaded)
    if head is None:
        raise UserError(
            f"'{run}' was pretrained with {loaded.info.get('pretext', '?')}, which predicts no hidden tokens; "
            "use a run of --pretext mlm"
        )
    tokenizer = modality.tokenizer
    own = str(tokenizer.backend.id_to_token(tokenizer.mask))  # a local folder's tokenizer may call it <mask>
    if tokenizer.spaces == "joined":  # the space belongs to the token that is guessed: alone it was never seen
        text = text.replace(f" {MASK}", MASK)
    inputs = modality.inputs([text.replace(MASK, own)])
    if (length := int(inputs["length"][0])) > modality.room:
        raise UserError(f"the text has {length} tokens, and this model reads at most {modality.room}; shorten it")
    batch = Batch(inputs, torch.arange(1), seed=0, step=0).to(where)
    tokens: Tokens = modality.plain(batch)
    masked = tokens.ids == tokenizer.mask
    encoder: Any = loaded.encoder
    with torch.inference_mode():
        logits = head.to(where)(encoder(tokens).tokens[masked], encoder.embeddings)
        best = logits.double().softmax(1).topk(min(k, tokenizer.vocabulary), dim=1)
    return [
        {"mask": nth + 1, "token": tokenizer.spelled(token), "probability": probability}
        for nth, (values, ids) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        for probability, token in zip(values, ids, strict=True)
    ]
