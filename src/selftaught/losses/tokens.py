"""Cross-entropy over tokens that differ in number from batch to batch and rank to rank."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selftaught.ranks import mean_count


def token_cross_entropy(
    logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """The mean of -log softmax(logits)[target] over the tokens of all ranks; 0 where there is none.

    Ranks with few tokens must not weigh as much as those with many: each divides its sum by the mean number of tokens
    of a rank, so that the mean over ranks, which DistributedDataParallel takes, is the mean over tokens.

    smoothing: share of a target's weight that is spread evenly over the vocabulary (Szegedy et al. 2016, section 7).
    """
    total = F.cross_entropy(logits.float(), target, reduction="sum", label_smoothing=smoothing)
    return total / mean_count(target)


def token_accuracy(logits: Float[Tensor, "n v"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """The share of the tokens whose likeliest guess is right, detached; 0 where there is none."""
    return (logits.detach().argmax(1) == target).sum() / max(1, len(target))


def token_binary_cross_entropy(logits: Float[Tensor, " n"], target: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean of -log sigmoid(logits) where the target is true, and of -log(1 - sigmoid(logits)) elsewhere, over the tokens
    of all ranks as in `token_cross_entropy`."""
    total = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="sum")
    return total / mean_count(target)
