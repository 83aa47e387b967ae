"""Beam search against the search of everything, on models small enough for that."""

import itertools
import math

import pytest
import torch

from selftaught.downstream.beam import beam_search

FIRST, LAST, V = 0, 1, 5


def table(seed: int) -> torch.Tensor:
    """Log-probabilities of the next token after the last two: [before, now, next]; FIRST never follows."""
    scores = torch.randn(V, V, V, generator=torch.Generator().manual_seed(seed)) * 2
    scores[:, :, FIRST] = -math.inf
    return scores.log_softmax(2)


class Model:
    """What follows depends on the last two tokens, so hypotheses must keep their own past when they are reordered."""

    def __init__(self, tables: list[torch.Tensor], beam: int) -> None:
        self.tables = torch.stack(tables).repeat_interleave(beam, 0)
        self.before = torch.full((len(self.tables),), FIRST)
        self.now = self.before

    def __call__(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        self.before, self.now = self.now[parents], tokens
        return self.tables[torch.arange(len(self.tables)), self.before, self.now]


def score(found: torch.Tensor, words: tuple[int, ...], power: float) -> float:
    total, before, now = 0.0, FIRST, FIRST
    for token in (*words, LAST):
        total += float(found[before, now, token])
        before, now = now, token
    return total / (len(words) + 1) ** power


def search(tables: list[torch.Tensor], limit: int, beam: int, power: float) -> tuple[list[list[int]], torch.Tensor]:
    model = Model(tables, beam)
    ids, scores = beam_search(model, len(tables), FIRST, LAST, limit, beam, power, torch.device("cpu"))
    return [row[: row.index(LAST)] if LAST in row else row for row in ids.tolist()], scores


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0])
def test_a_wide_beam_finds_what_the_search_of_everything_finds(power: float) -> None:
    tables, limit = [table(seed) for seed in range(6)], 4
    everything = [w for n in range(limit) for w in itertools.product(range(2, V), repeat=n)]
    found, scores = search(tables, limit, beam=len(everything) + 1, power=power)
    for one, words, value in zip(tables, found, scores.tolist(), strict=True):
        best = max(everything, key=lambda w: score(one, w, power))
        assert tuple(words) == best
        assert value == pytest.approx(score(one, best, power), abs=1e-5)


def test_a_beam_of_one_is_greedy() -> None:
    tables, limit = [table(seed) for seed in range(20)], 6
    for one, words in zip(tables, search(tables, limit, beam=1, power=1.0)[0], strict=True):
        expected, before, now = [], FIRST, FIRST
        while len(expected) < limit - 1:
            token = int(one[before, now].argmax())
            if token == LAST:
                break
            expected.append(token)
            before, now = now, token
        assert words == expected


def test_rows_do_not_see_each_other_and_a_wider_beam_is_no_worse_by_much() -> None:
    tables = [table(seed) for seed in range(30)]
    together, scores = search(tables, 6, beam=4, power=1.0)
    alone = [search([one], 6, beam=4, power=1.0)[0][0] for one in tables]
    assert together == alone
    greedy = search(tables, 6, beam=1, power=1.0)[1]
    assert float(scores.mean()) > float(greedy.mean())
