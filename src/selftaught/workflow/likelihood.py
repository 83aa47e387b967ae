"""The part of evaluate that needs no labels: how well a language model predicts documents it never saw."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import bundle, rng
from selftaught.data.texts import TextSource
from selftaught.data.tokens import TokenSource
from selftaught.errors import UserError, say
from selftaught.evaluation import likelihood as measure
from selftaught.modality.text import TextModality
from selftaught.train.progress import Meter
from selftaught.workflow.kinds import kind_called

_TOKENS = 1 << 18  # at most so many are predicted, and
_IN_TURN = 1 << 11  # so many hidden one at a time, each of which costs a whole text
_ORDER = 8  # key of which documents those are
_LEAST = 5  # documents: an interval over fewer says nothing


@dataclass(frozen=True)
class Found:
    """Rows of evaluation.json, what they were measured on, and sentences about them."""

    rows: list[dict[str, Any]]
    protocol: dict[str, Any]
    verdict: list[str]


@dataclass(frozen=True)
class Sample:
    """Unseen documents: positions in a source, their tokens (all of `whole`'s limit), -log p of tokens by frequency."""

    source: TextSource
    index: np.ndarray
    whole: TokenSource
    base: Tensor


def likelihood(
    run: Path, loaded: bundle.Bundle, source: Any, seen: np.ndarray, seed: int, device: torch.device, quiet: bool
) -> Found | None:
    """Figures of a run that predicts tokens (clm, mlm); None for any other."""
    head = bundle.masked_head(run, loaded)
    continues = bool(loaded.info.get("continues"))
    if (head is None and not continues) or source.kind != loaded.modality.name:
        return None
    assert isinstance(loaded.modality, TextModality)
    fresh = np.flatnonzero(~np.isin(source.hashes, seen))
    if len(fresh) < _LEAST:
        raise UserError(
            f"only {len(fresh)} documents are unseen by pretraining; at least {_LEAST} are needed: name a test set of its "
            "own, or pretrain with a larger --holdout"
        )
    whole: Any = kind_called(source.kind).whole(source, loaded.modality, quiet)
    known = np.setdiff1d(np.arange(len(source)), fresh)
    counts = whole.counts(known if len(known) else fresh, loaded.modality.tokenizer.vocabulary)
    fresh = fresh[whole.lengths[fresh] > 1]
    sample = Sample(source, fresh[rng.permutation(len(fresh), seed, _ORDER)], whole, measure.unigram(counts))
    loaded.encoder.to(device)
    with Meter("likelihood", 1, quiet=quiet) as meter:
        settings = {"seed": seed, "device": device}
        if head is None:
            found = _next(loaded, sample, meter, settings)
        else:
            found = _hidden(loaded, head.to(device).eval(), sample, meter, settings)
    of = "the documents that pretraining saw" if len(known) else "the tested documents themselves"
    protocol = {**found.protocol, "unigram": f"token frequencies of {of}", "interval": "95 %, bootstrap over documents"}
    _warn(protocol, quiet)
    return Found(
        found.rows, {"likelihood": protocol}, [s[0].upper() + s[1:] + "." for s in measure.verdict(found.rows)]
    )


def _within(sample: Sample, budget: int, longest: int | None = None) -> np.ndarray:
    """As many of the documents, in the sample's order, as hold `budget` tokens; a longer one counts as `longest`."""
    lengths = sample.whole.lengths[sample.index]
    total = (lengths if longest is None else np.minimum(lengths, longest)).cumsum()
    return sample.index[: max(_LEAST, int(np.searchsorted(total, budget, side="right")))]


def _next(loaded: bundle.Bundle, sample: Sample, meter: Meter, settings: dict[str, Any]) -> Found:
    """The loss, and bits per byte of the documents' UTF-8."""
    modality: Any = loaded.modality
    index, overlap = _within(sample, _TOKENS), int(modality.running)
    pieces, owner = sample.whole.cut(index, overlap)
    found = measure.totals(
        partial(measure.next_tokens, loaded.encoder, modality),
        *(pieces, np.arange(len(pieces)), owner, len(index), sample.base),
        **{**settings, "progress": partial(_tell, meter, len(pieces))},
    )
    # The first token of a running text follows nothing; it is coded by its frequency on both sides.
    first = sample.base[sample.whole.subset(index).fetch(np.arange(len(index)))["ids"][:, 0]] * overlap
    coded = found._replace(model=found.model + first, unigram=found.unigram + first)
    size = torch.from_numpy(sample.source.sizes[index]).double()
    rows = measure.measured("loss", found, found.tokens, settings["seed"])
    rows += measure.measured("bits_per_byte", coded, size, settings["seed"], math.log(2))
    protocol = {"context": f"pieces of {modality.size} tokens", **_facts(loaded, sample, index, found)}
    return Found(rows, protocol, [])


def _hidden(loaded: bundle.Bundle, head: Any, sample: Sample, meter: Meter, settings: dict[str, Any]) -> Found:
    """The loss at BERT's masking of 15 %, and the pseudo-perplexity of a smaller sample: the first piece of each text."""
    modality: Any = loaded.modality
    index, some = _within(sample, _TOKENS), _within(sample, _IN_TURN, modality.room)
    (pieces, owner), (few, of) = sample.whole.cut(index), sample.whole.cut(some)
    firsts = np.unique(of, return_index=True)[1]
    total = len(pieces) + len(firsts)
    masked = measure.totals(
        partial(measure.hidden_tokens, loaded.encoder, head, modality),
        *(pieces, np.arange(len(pieces)), owner, len(index), sample.base),
        **{**settings, "progress": partial(_tell, meter, total)},
    )
    turned = measure.totals(
        partial(measure.each_in_turn, loaded.encoder, head, modality),
        *(few, firsts, of[firsts], len(some), sample.base),
        **{**settings, "progress": lambda done: _tell(meter, total, len(pieces) + done)},
    )
    rows = measure.measured("masked_loss", masked, masked.tokens, settings["seed"])
    in_turn = measure.measured("loss", turned, turned.tokens, settings["seed"])
    rows += measure.as_perplexity(in_turn, "pseudo_perplexity")
    protocol = {
        "masked": f"{measure.MASK:.0%}, as BERT does",
        "hidden_in_turn": int(turned.tokens.sum()),
        **_facts(loaded, sample, index, masked),
    }
    return Found(rows, protocol, [])


def _tell(meter: Meter, total: int, done: int) -> None:
    meter.total = total
    meter.update(done)


def _facts(loaded: bundle.Bundle, sample: Sample, index: np.ndarray, found: measure.Totals) -> dict[str, Any]:
    tokenizer: Any = loaded.modality.tokenizer  # type: ignore[attr-defined]
    counts = sample.whole.counts(index, tokenizer.vocabulary)
    texts = list(sample.source.texts(index[:_LEAST], 2000))
    exact = all(
        tokenizer.decode(one.ids.tolist()) == text for text, one in zip(texts, tokenizer.encode(texts), strict=True)
    )
    return {
        "documents": len(index),
        "tokens": int(found.tokens.sum()),
        "unknown": float(counts[tokenizer.unknown] / counts.sum()),
        "tokens_spell_the_text": exact,
    }


def _warn(protocol: dict[str, Any], quiet: bool) -> None:
    """What makes a likelihood look better than it is."""
    if quiet:
        return
    if protocol["unknown"]:
        say(f"{protocol['unknown']:.2%} of the tokens are [UNK]: what they stand for was not predicted")
    if not protocol["tokens_spell_the_text"]:
        say("the tokenizer drops something of the text (capitals, spaces), which was not predicted either")
