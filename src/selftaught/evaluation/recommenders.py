"""Baselines of recommendation: all learn from the same histories and score all items after any history, an unseen user's too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from selftaught import rng
from selftaught.data.ragged import within

LARGEST = 20_000
"""Items up to which EASE and ItemKNN are computed: a matrix of items by items takes 1.6 GB then."""


class Recommender(ABC):
    """fit: histories float32 [N, V], 1 where a user has an item. scores: of histories [B, V] all items, float32 [B, V]."""

    @abstractmethod
    def fit(self, histories: csr_array) -> Recommender: ...

    @abstractmethod
    def scores(self, histories: csr_array) -> np.ndarray: ...


class Popularity(Recommender):
    """How many users have an item."""

    def fit(self, histories: csr_array) -> Popularity:
        self.count = np.asarray(histories.sum(0), np.float32).ravel()
        return self

    def scores(self, histories: csr_array) -> np.ndarray:
        return np.broadcast_to(self.count, histories.shape).copy()


class Random(Recommender):
    """A function of the history and a seed, like nothing else."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, histories: csr_array) -> Random:
        return self

    def scores(self, histories: csr_array) -> np.ndarray:
        key = torch.from_numpy((histories @ np.arange(1.0, histories.shape[1] + 1)).astype(np.int64))
        return rng.uniform(rng.fold(self.seed, 11), key, histories.shape[1]).numpy()


class ItemKNN(Recommender):
    """Sarwar et al. 2001: an item's score is the sum of its cosines with those of the history, among the `neighbours` nearest of
    each; shrink is added to the cosine's denominator."""

    def __init__(self, neighbours: int = 100, shrink: float = 10.0) -> None:
        self.neighbours, self.shrink = neighbours, shrink

    def fit(self, histories: csr_array) -> ItemKNN:
        count = np.asarray(histories.sum(0)).ravel()
        norm = np.sqrt(count)
        together = (histories.T @ histories).tocsr()
        together.setdiag(0)
        together.eliminate_zeros()
        row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        together.data = (together.data / (norm[row] * norm[together.indices] + self.shrink)).astype(np.float32)
        # The nearest of each row: rows are sorted by value, and what comes later than `neighbours` is dropped.
        order = np.lexsort((together.indices, -together.data, row))
        nth = within(np.diff(together.indptr))
        kept = order[nth < self.neighbours]
        self.near = csr_array((together.data[kept], (row[kept], together.indices[kept])), shape=together.shape)
        return self

    def scores(self, histories: csr_array) -> np.ndarray:
        return (histories @ self.near.T).toarray().astype(np.float32)


class EASE(Recommender):
    """Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", eq. 8: B = I - P diag(1 / diag P), P the inverse of
    X'X + lambda I."""

    def __init__(self, weight: float = 200.0) -> None:
        self.weight = weight

    def fit(self, histories: csr_array) -> EASE:
        gram = (histories.T @ histories).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += self.weight
        inverse = np.linalg.inv(gram)
        self.table = (-inverse / np.diag(inverse)).astype(np.float32)
        np.fill_diagonal(self.table, 0)
        return self

    def scores(self, histories: csr_array) -> np.ndarray:
        return np.asarray(histories @ self.table, np.float32)


class PureSVD(Recommender):
    """Cremonesi, Koren, Turrin 2010: histories times V V', V the right singular vectors, by scikit-learn's randomised SVD."""

    def __init__(self, rank: int = 64, seed: int = 0) -> None:
        self.rank, self.seed = rank, seed

    def fit(self, histories: csr_array) -> PureSVD:
        from sklearn.utils.extmath import randomized_svd

        rank = min(self.rank, min(histories.shape) - 1)
        _, _, self.right = randomized_svd(histories, rank, random_state=self.seed, n_iter=7)
        return self

    def scores(self, histories: csr_array) -> np.ndarray:
        return np.asarray((histories @ self.right.T) @ self.right, np.float32)


GRIDS: dict[str, tuple[Callable[..., Recommender], dict[str, tuple[Any, ...]]]] = {
    "itemknn": (ItemKNN, {"neighbours": (20, 100, 500), "shrink": (0.0, 10.0, 100.0)}),
    "ease": (EASE, {"weight": (30.0, 100.0, 300.0, 1000.0, 3000.0)}),
    "svd": (PureSVD, {"rank": (16, 64, 256)}),
}
"""Baselines and what is tried of their settings, on validation cases alone."""


def candidates(name: str) -> Iterable[tuple[dict[str, Any], Recommender]]:
    """Every setting of a baseline's grid, unfitted."""
    make, grid = GRIDS[name]
    settings: list[dict[str, Any]] = [{}]
    for key, values in grid.items():
        settings = [{**given, key: value} for given in settings for value in values]
    return [(given, make(**given)) for given in settings]
