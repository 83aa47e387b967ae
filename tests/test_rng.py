"""Randomness is a function of its key: uniform, independent between keys, and the same whatever else is in the batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from selftaught import rng


def splitmix(words: list[int]) -> int:
    """SplitMix64's finaliser chained over words, in Python integers."""
    mask, state = (1 << 64) - 1, 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_bits_are_splitmix64() -> None:
    assert rng.fold(1, 2, 3) == splitmix([1, 2, 3])
    key = rng.fold(7)
    found = rng.bits(key, torch.tensor([0, 5, 2**40]), 3)
    for i, index in enumerate([0, 5, 2**40]):
        row = splitmix_of(index + key + 0x9E3779B97F4A7C15)
        for j in range(3):
            word = splitmix_of(row + (j + 1) * 0x9E3779B97F4A7C15)
            assert found[i, j].item() & ((1 << 64) - 1) == word


def splitmix_of(x: int) -> int:
    mask = (1 << 64) - 1
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@pytest.mark.parametrize("key", [rng.fold(0), rng.fold(0, 1), rng.fold(2**63, 5)])
def test_uniform_is_uniform(key: int) -> None:
    u = rng.uniform(key, torch.arange(20_000), 4).double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    correlation = np.corrcoef(u.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.03


def test_keys_and_neighbours_are_independent() -> None:
    index = torch.arange(20_000)
    a, b = (rng.uniform(rng.fold(0, step), index, 1)[:, 0].double().numpy() for step in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.03


def test_a_row_depends_on_its_index_alone() -> None:
    key = rng.fold(3, 1, 4)
    whole = rng.uniform(key, torch.arange(100), 6)
    some = torch.tensor([99, 3, 3, 50])
    assert torch.equal(rng.uniform(key, some, 6), whole[some])
    assert torch.equal(rng.uniform(key, some, 2), whole[some, :2])


def test_permutation_is_one_and_depends_on_its_key() -> None:
    first = rng.permutation(1000, 1, 2)
    assert sorted(first.tolist()) == list(range(1000))
    assert np.array_equal(first, rng.permutation(1000, 1, 2))
    assert not np.array_equal(first, rng.permutation(1000, 1, 3))
    assert len(rng.permutation(0, 1)) == 0
