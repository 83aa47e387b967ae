"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018, "Unsupervised Feature Learning via
Non-Parametric Instance Discrimination", section 3.4)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from selftaught import rng
from selftaught.errors import UserError

K = 200
TEMPERATURE = 0.1
CANDIDATES = (5, 10, 20, 50, 100, 200)
_QUERIES = 2000  # leave-one-out queries that choose k: the standard error of an accuracy is then at most 1.1 points
_CHUNK = 1 << 24  # similarities held at once (64 MiB of float32)


def knn(
    train: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> Int[Tensor, " m"]:
    """Predicted label of each test row: its k most similar training rows vote with weight exp(cosine / temperature).

    k is capped at the number of training rows, so with few labels (n <= k) every labelled sample votes and the
    temperature alone decides how local the vote is. Ties go to the smaller label. Memory is bounded by chunks of the
    similarity matrix. `labels` are any integers; the predictions are values of `labels`.
    """
    _check(train, labels, k, temperature)
    classes, target = torch.unique(labels, return_inverse=True)
    predictions = torch.empty(len(test), dtype=labels.dtype, device=test.device)
    bank = F.normalize(train.float(), dim=1)
    for rows in torch.arange(len(test), device=test.device).split(max(1, _CHUNK // len(train))):
        similarity = F.normalize(test[rows].float(), dim=1) @ bank.T
        votes = _votes(similarity, target, len(classes), [min(k, len(train))], temperature)[0]
        predictions[rows] = classes[votes.argmax(1)]
    return predictions


def choose_k(
    train: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    candidates: tuple[int, ...] = CANDIDATES,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> int:
    """The k with the best leave-one-out accuracy on the labelled training samples; a tie goes to the larger k.

    Each query is a labelled sample that does not vote for itself, so no label is spent on a validation part and the
    test part is never seen. At most 2000 queries are asked, drawn by `seed`.
    """
    _check(train, labels, min(candidates), temperature)
    n = len(train)
    if n < 3:
        return n
    ks = sorted({min(k, n - 1) for k in candidates})
    classes, target = torch.unique(labels, return_inverse=True)
    bank = F.normalize(train.float(), dim=1)
    queries = torch.from_numpy(rng.permutation(n, seed, n)[:_QUERIES]).to(train.device)
    right = torch.zeros(len(ks), dtype=torch.int64)
    for rows in queries.split(max(1, _CHUNK // n)):
        similarity = bank[rows] @ bank.T
        similarity[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        for i, votes in enumerate(_votes(similarity, target, len(classes), ks, temperature)):
            right[i] += int((votes.argmax(1) == target[rows]).sum())
    best = int(right.max())
    return max(k for k, score in zip(ks, right.tolist()) if score == best)


def _votes(
    similarity: Float[Tensor, "m n"], target: Int[Tensor, " n"], classes: int, ks: list[int], temperature: float
) -> list[Float[Tensor, "m c"]]:
    """Votes per class for each k of the ascending `ks`, from one top-k search."""
    near, index = similarity.topk(ks[-1], dim=1)
    # Relative to the nearest neighbour: the argmax is the same, and a small temperature cannot overflow.
    weight = ((near - near[:, :1]) / temperature).exp()
    label = target[index]
    votes = similarity.new_zeros(len(similarity), classes)
    result, done = [], 0
    for k in ks:
        votes = votes.scatter_add(1, label[:, done:k], weight[:, done:k])
        result.append(votes)
        done = k
    return result


def _check(train: Tensor, labels: Tensor, k: int, temperature: float) -> None:
    if len(train) == 0 or len(train) != len(labels):
        raise UserError(
            f"kNN has {len(train)} training rows and {len(labels)} labels; give one label per row, at least one"
        )
    if k < 1:
        raise UserError(f"k is {k}, it must be at least 1; use k=20 or k=200")
    if temperature <= 0:
        raise UserError(f"kNN temperature is {temperature}, it must be above 0; use 0.1")
