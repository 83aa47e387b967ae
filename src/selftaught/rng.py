"""Randomness as a function of (seed, step, sample), never of history.

Every random number of a run is the hash of what it is for. So a resumed run needs no generator state, and the number
of workers or ranks cannot change a sample's augmentation or mask. The hash is the finaliser of SplitMix64 (Steele et
al. 2014, "Fast splittable pseudorandom number generators"), chained over the words of the key; it gives the same bits
on every device because it is integer arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB


def _signed(word: int) -> int:
    """The two's complement reading of a 64-bit word (torch has no full uint64 arithmetic)."""
    return word - (1 << 64) if word >> 63 else word


def fold(*words: int) -> int:
    """Hash of a sequence of integers, as an unsigned 64-bit integer."""
    state = 0
    for word in words:
        state = (state + (word & _MASK) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _M1) & _MASK
        state = ((state ^ (state >> 27)) * _M2) & _MASK
        state ^= state >> 31
    return state


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_M1)
    x = (x ^ _shift_right(x, 27)) * _signed(_M2)
    return x ^ _shift_right(x, 31)


def bits(key: int, index: Tensor, n: int) -> Tensor:
    """Random int64 words [B, n], one row per entry of `index` [B]: row i depends on (key, index[i]) alone."""
    row = _mix(index.to(torch.int64) + _signed((key + _GOLDEN) & _MASK))
    column = torch.arange(1, n + 1, device=index.device, dtype=torch.int64) * _signed(_GOLDEN)
    return _mix(row[:, None] + column[None, :])


def uniform(key: int, index: Tensor, n: int) -> Tensor:
    """Uniform float32 [B, n] in [0, 1), 24 bits each; row i depends on (key, index[i]) alone."""
    return _shift_right(bits(key, index, n), 40).to(torch.float32) * 2.0**-24


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of range(n), int64, that is a function of `key` alone (not of any library's generator)."""
    words = bits(fold(*key), torch.arange(n), 1)[:, 0].numpy()
    return np.argsort(words, kind="stable")
