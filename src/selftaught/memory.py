"""A memory of what earlier batches gave: negatives (MoCo), neighbours (NNCLR), rows to share prototypes with (SwAV)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.ranks import gather


class Queue(nn.Module):
    """The last `size` rows that were pushed, by all ranks, the oldest overwritten first; part of every checkpoint.

    rows [size, width]: random unit vectors until they are overwritten, as in MoCo's code (He et al. 2020).
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.pushed: Tensor
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "n width"]) -> None:
        """Take up the rows of every rank, as many of each; of more than fit the last ones."""
        rows = gather(rows.detach()).to(self.rows.dtype)
        size = len(self.rows)
        at = (self.pushed + torch.arange(len(rows), device=rows.device)) % size
        self.rows[at[-size:]] = rows[-size:]
        self.pushed += len(rows)

    def pushed_alone(self) -> Tensor:
        """As many rows, but only of those that were pushed, each as often as it takes: while random ones are left, which are
        easily told from what is alike, a loss against `rows` is not that of later. Before the first push it is `rows`."""
        size = len(self.rows)
        n = int(self.pushed.clamp(max=size))
        return self.rows if n in (0, size) else self.rows[torch.arange(size, device=self.rows.device) % n]

    @property
    def filled(self) -> Tensor:
        """Which rows were pushed, bool [size]."""
        return torch.arange(len(self.rows), device=self.rows.device) < self.pushed
