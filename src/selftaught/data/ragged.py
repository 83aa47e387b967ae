"""Rows of unequal length that lie one after the other in one array."""

import numpy as np


def within(counts: np.ndarray) -> np.ndarray:
    """The place of each element in its own row, int64 [sum(counts)]: counts 2, 3 give 0 1 0 1 2."""
    return np.arange(int(counts.sum())) - np.repeat(counts.cumsum() - counts, counts)


def inside(bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The elements between bounds int64 [N, 2], int64 [E], and which of the N each belongs to, int64 [E]."""
    counts = bounds[:, 1] - bounds[:, 0]
    return within(counts) + np.repeat(bounds[:, 0], counts), np.repeat(np.arange(len(bounds)), counts)
