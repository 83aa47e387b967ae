"""Low-rank adaptation: attention learns a small correction of its frozen matrices.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1: W becomes
W + (alpha / r) B A, with B zero at the start. A starts as in the authors' loralib (Kaiming-uniform; the paper's text says
Gaussian).

The correction is a parametrization of the weight: whatever reads `module.weight` reads the corrected one, so no architecture
needs a layer of its own, and merging changes no bit.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from selftaught.encoders import Encoder
from selftaught.errors import UserError

RANK = 8
_ALPHA = 2.0  # over the rank: the step does not depend on the rank
# Queries and values as transformers calls them; then those that make queries, keys and values at once (timm, GPT-2, ModernBERT).
_ADAPTED = frozenset({"query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "qkv", "c_attn", "Wqkv"})


class LowRank(nn.Module):
    """weight [out, in] -> weight + 2 B A, with A [r, in] and B [out, r]; `flipped` for a weight [in, out] (GPT-2's)."""

    def __init__(self, weight: Tensor, rank: int, flipped: bool) -> None:
        super().__init__()
        outputs, inputs = reversed(weight.shape) if flipped else weight.shape
        self.flipped = flipped
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # in training as it will be merged
            change = _ALPHA * (self.B @ self.A)
            return weight + (change.T if self.flipped else change)


def adapt(encoder: Encoder, rank: int = RANK) -> None:
    """Freeze an encoder and give its queries and values, or what makes them, a correction of rank `rank`.

    Raises UserError for an encoder without attention, or of matrices no larger than the rank.
    """
    found = [m for name, m in encoder.named_modules() if name.rpartition(".")[2] in _ADAPTED and _is_matrix(m)]
    if not found:
        raise UserError(
            f"mode lora adapts attention, and encoder '{encoder.config.name}' has none; use full, head or lastK, such as last2"
        )
    encoder.requires_grad_(False)
    for module in found:
        weight = module.get_parameter("weight")
        if not 0 < rank < min(weight.shape):
            raise UserError(f"mode lora{rank} is not of a rank from 1 to {min(weight.shape) - 1}; use lora8")
        # unsafe: the checks would run the correction once more and want float64 kept; it changes neither shape nor type.
        flipped = not isinstance(module, nn.Linear)  # transformers' Conv1D
        parametrize.register_parametrization(module, "weight", LowRank(weight, rank, flipped), unsafe=True)


def _is_matrix(module: nn.Module) -> bool:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.ndim == 2


def merge(encoder: nn.Module) -> None:
    """Write the corrections, where there are any, into the weights; the encoder is then an ordinary one."""
    for module in list(encoder.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
