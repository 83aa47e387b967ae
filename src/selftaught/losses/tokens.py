"""Cross-entropy over tokens that differ in number from batch to batch and rank to rank."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def token_cross_entropy(logits: Float[Tensor, "n v"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean of -log softmax(logits)[target] over the tokens of all ranks; 0 where there is none.

    Ranks with few tokens must not weigh as much as those with many: each divides its sum by the mean number of tokens
    of a rank, so that the mean over ranks, which DistributedDataParallel takes, is the mean over tokens.
    """
    n = torch.tensor(float(len(target)), device=logits.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(n)
        n /= dist.get_world_size()
    return F.cross_entropy(logits.float(), target, reduction="sum") / n.clamp_min(1.0)
