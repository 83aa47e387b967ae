"""How well an encoder of text predicts tokens, beside token frequencies: sums over each document, then rows.

Next tokens: the likelihood of a causal model. Hidden tokens: the loss of BERT's masking (Devlin et al. 2019), and the
pseudo-likelihood, in which each token is hidden in turn (Salazar et al. 2020, "Masked Language Model Scoring", arXiv
1910.14659, eq. 1; the perplexity made of it is its eq. 2).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.batch import Batch, Tokens
from selftaught.data import Source
from selftaught.evaluation.intervals import Interval, ratio
from selftaught.modality.text import TextModality
from selftaught.modality.text.mask import choose, corrupt, how_many

MASK, KEEP, RANDOM = 0.15, 0.1, 0.1
"""BERT's masking, whatever a run was trained with: figures of different runs can then be compared."""
_TOKENS = 4096  # tokens encoded together
_STEP = 1 << 40  # the key of masks that belong to no training step
_CHOICE, _SHOWN, _OTHER = 1, 2, 3  # streams of randomness

Progress = Callable[[int], None]


class Guesses(NamedTuple):
    """Logits [m, V] for m tokens of a batch, the tokens [m], and in which rows of the batch they stand [m]."""

    logits: Tensor
    target: Tensor
    row: Tensor


class Totals(NamedTuple):
    """Of each of N documents, float64 [N]: how many tokens were predicted, and the sum of -log p (nats) of them by the
    model and by frequency."""

    tokens: Tensor
    model: Tensor
    unigram: Tensor


def next_tokens(encoder: Any, modality: TextModality, batch: Batch) -> Guesses:
    """Each token of the texts from those before it. Special tokens are read but not predicted; in running text the first
    token is not predicted either."""
    text = modality.window(batch, _CHOICE)
    before = text._replace(ids=text.ids[:, :-1], valid=text.valid[:, 1:], starts=text.starts[:, :-1])
    guessed = modality.maskable(text)[:, 1:] & text.valid[:, 1:]
    hidden = encoder(before).tokens[guessed]
    return Guesses(hidden @ encoder.embeddings.T, text.ids[:, 1:][guessed], guessed.nonzero()[:, 0])


def hidden_tokens(encoder: Any, head: Any, modality: TextModality, batch: Batch) -> Guesses:
    """15 % of the tokens from the others, as BERT hides them; a function of (seed, sample)."""
    text = modality.plain(batch)
    width, tokenizer = text.ids.shape[1], modality.tokenizer
    count, scores = how_many(text.valid, MASK), batch.uniform(_CHOICE, width)
    chosen = choose(modality.maskable(text), torch.ones_like(text.starts), count, scores)
    ids = corrupt(
        *(text.ids, chosen, batch.uniform(_SHOWN, width), batch.uniform(_OTHER, width)),
        mask=tokenizer.mask,
        vocabulary=tokenizer.vocabulary,
        keep=KEEP,
        random=RANDOM,
    )
    hidden = encoder(text._replace(ids=ids)).tokens[chosen]
    return Guesses(head(hidden, encoder.embeddings), text.ids[chosen], chosen.nonzero()[:, 0])


def each_in_turn(encoder: Any, head: Any, modality: TextModality, batch: Batch) -> Guesses:
    """Every token from all others, in as many copies of each text as it has tokens."""
    text, found = modality.plain(batch), []
    for row, (valid, maskable) in enumerate(zip(text.valid, modality.maskable(text), strict=True)):
        ids, at = text.ids[row][valid], maskable[valid].nonzero()[:, 0]
        for part in at.split(max(1, _TOKENS // len(ids))):
            copies = ids.repeat(len(part), 1)
            line = torch.arange(len(part), device=ids.device)
            copies[line, part] = modality.tokenizer.mask
            every = torch.ones_like(copies, dtype=torch.bool)
            hidden = encoder(Tokens(copies, every, every)).tokens[line, part]
            found.append(Guesses(head(hidden, encoder.embeddings), ids[part], torch.full_like(part, row)))
    return Guesses(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def unigram(counts: np.ndarray) -> Tensor:
    """-log p of every token id by frequency, float64 [V]: counts with one added to each, so that none is impossible."""
    more = torch.from_numpy(counts).double() + 1
    return more.sum().log() - more.log()


def totals(
    guess: Callable[[Batch], Guesses],
    source: Source,
    rows: np.ndarray,
    owner: np.ndarray,
    documents: int,
    base: Tensor,
    *,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> Totals:
    """Sums over `documents` of what `guess` says of the texts at `rows` of a source; row i is of document owner[i]."""
    sums = torch.zeros(3, documents, dtype=torch.float64)
    with torch.inference_mode():
        for part in _parts(source, rows):
            batch = Batch(source.fetch(rows[part]), torch.from_numpy(rows[part]), seed, _STEP).to(device)
            logits, target, row = guess(batch)
            nats = F.cross_entropy(logits.float(), target, reduction="none").double().cpu()
            of = torch.from_numpy(owner[part])[row.cpu()]
            sums.index_add_(1, of, torch.stack([torch.ones_like(nats), nats, base[target.cpu()]]))
            progress(int(part[-1]) + 1)
    return Totals(*sums)


def _parts(source: Any, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive positions in `rows` whose texts hold about _TOKENS tokens together."""
    group = source.lengths[rows].cumsum() // _TOKENS
    yield from np.split(np.arange(len(rows)), np.flatnonzero(np.diff(group)) + 1)


def measured(metric: str, found: Totals, weight: Tensor, seed: int, unit: float = 1.0) -> list[dict[str, Any]]:
    """Rows of a metric for the model and for token frequencies: the sum of -log p a `weight` of 1, divided by `unit`.

    The model's row has its paired difference to the baseline, as the rows of accuracies have.
    """
    here = weight > 0
    kept = [x[here] for x in (found.model, found.unigram, weight)]

    def figure(nats: Tensor) -> Interval:
        return Interval(*(x / unit for x in ratio(nats, kept[2], seed=seed)))

    fixed = {"measure": "likelihood", "metric": metric, "labels": 0, "labels_n": 0, "seeds": [seed], "n": len(kept[2])}
    model = {**fixed, "features": "pretrained", **figure(kept[0])._asdict()}
    base = {**fixed, "features": "unigram", **figure(kept[1])._asdict()}
    return [{**model, "against": {"unigram": list(figure(kept[0] - kept[1]))}}, base]


def as_perplexity(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Rows of a loss in nats as perplexities, without the differences, which are no differences of perplexities."""
    plain = [{k: v for k, v in row.items() if k != "against"} for row in rows]
    return [{**row, "metric": metric, **{k: math.exp(row[k]) for k in ("value", "low", "high")}} for row in plain]


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Whether the model predicts better than token frequencies, in a sentence."""
    mine = next(row for row in rows if "against" in row)
    base = next(row for row in rows if row["features"] == "unigram" and row["metric"] == mine["metric"])
    _, low, high = mine["against"]["unigram"]
    what = f"{mine['metric'].replace('_', ' ')} {mine['value']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}]"
    beside = f"{what} vs {base['value']:.3f} on unseen documents"
    if high < 0:
        return [f"the model predicts tokens better than their frequencies do: {beside}"]
    if low > 0:
        return [f"the model predicts tokens worse than their frequencies do: {beside}"]
    return [f"no proof that the model predicts tokens better than their frequencies do: {beside}"]
