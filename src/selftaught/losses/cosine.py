"""The cosine of predictions and targets: the whole loss of BYOL (Grill et al. 2020) and SimSiam (Chen & He 2020)."""

import torch
from jaxtyping import Float
from torch import Tensor

from selftaught.losses.contrastive import normalize


def mean_cosine(prediction: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The mean over rows of cos(prediction[i], target[i]), in float32; whether a target gives gradient is the caller's."""
    with torch.autocast(prediction.device.type, enabled=False):
        return (normalize(prediction) * normalize(target)).sum(-1).mean()
