"""Beam search: the likeliest sequences of a model that tells the next token, found step by step."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

StepFunction = Callable[[Tensor, Tensor], Tensor]


def beam_search(
    step: StepFunction, rows: int, first: int, last: int, limit: int, beam: int, power: float, device: torch.device
) -> tuple[Int[Tensor, "rows limit"], Float[Tensor, " rows"]]:
    """The best sequence found for each row, and its score: the sum of its tokens' log-probabilities / length^power.

    step: (tokens int64 [rows * beam], parents int64 [rows * beam]) -> log-probabilities [rows * beam, V] of what
        follows. tokens are the newest ones; parents say which place of the step before each continues, so that what is
        cached can follow. rows: sequences asked for, `beam` places for each, side by side.
    first, last: the tokens that open and end a sequence. limit: its longest length, the end included: there it must
        end. beam: 1 is greedy search. power: 0 compares sums, 1 means (Wu et al. 2016, section 7, has both).

    A sequence that ends among the `beam` best of its row is finished; a row with `beam` finished ones is done.
    Returned ids hold neither `first` nor `last`; what lies behind a sequence's end is filled with `last`.
    """
    score = torch.full((rows, beam), -math.inf, device=device)
    score[:, 0] = 0.0  # all places begin alike: only one of them may bear candidates
    tokens = torch.full((rows * beam,), first, dtype=torch.int64, device=device)
    parents = torch.arange(rows * beam, device=device)
    written = torch.full((rows, beam, limit), last, dtype=torch.int64, device=device)
    best, best_ids = torch.full((rows,), -math.inf, device=device), written[:, 0].clone()
    finished = torch.zeros(rows, dtype=torch.int64, device=device)
    row, place = torch.arange(rows, device=device)[:, None], torch.arange(2 * beam, device=device)
    for at in range(limit):
        found = step(tokens, parents)
        vocabulary = found.shape[1]
        if at == limit - 1:
            found = found.masked_fill(torch.arange(vocabulary, device=device) != last, -math.inf)
        total = (score[:, :, None] + found.view(rows, beam, vocabulary)).flatten(1)
        top, where = total.topk(min(2 * beam, total.shape[1]), dim=1)
        parent, token = where // vocabulary, where % vocabulary
        ends = (token == last) & (place[: top.shape[1]] < beam) & top.isfinite()
        value, which = (top / (at + 1) ** power).masked_fill(~ends, -math.inf).max(dim=1)
        better = (value > best) & (finished < beam)
        best = torch.where(better, value, best)
        ended = written[row[:, 0], parent.gather(1, which[:, None])[:, 0]]
        best_ids = torch.where(better[:, None], ended, best_ids)
        finished += ends.sum(1)
        if bool((finished >= beam).all()):
            break
        score, kept = top.masked_fill(token == last, -math.inf).topk(beam, dim=1)
        parent, token = parent.gather(1, kept), token.gather(1, kept)
        written = written[row, parent]
        written[:, :, at] = token
        tokens, parents = token.flatten(), (row * beam + parent).flatten()
    return best_ids, best
