"""DeepCluster-v2: features of all pictures are clustered from time to time, and each view is sent to its picture's cluster.

Caron, Bojanowski, Joulin, Douze 2018, "Deep Clustering for Unsupervised Learning of Visual Features", in its second version:
Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, appendix D.
"""

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from selftaught import rng
from selftaught.batch import Batch, Step
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.losses.clusters import sinkhorn, spherical_kmeans
from selftaught.losses.contrastive import normalize
from selftaught.losses.tokens import token_accuracy, token_cross_entropy
from selftaught.modality.base import Modality
from selftaught.pretext.views import MultiCrop, above_zero
from selftaught.ranks import gather

_START = 89  # stream of randomness of the rows that k-means starts from


class DeepCluster(MultiCrop):
    """Encoder f, projection head g, z = g(f(view)); cross-entropy of cosines z·centroids / temperature with the cluster of the
    sample, which spherical k-means found among the stored projections of all samples.

    A sample's projection (of its first global view) is stored in slot index % samples; whoever comes last owns a slot. A
    sample that is not clustered, as all are at first, and those whose slot another owns, goes to the centroid that Sinkhorn's
    balanced codes give it among the batch: nearest centroids alone would send everything to a few. So do held-out samples.

    k-means runs whenever half of the bank's rows belong to no cluster, from as many rows as clusters on, and whenever as many
    were written as it holds: as the bank fills up each time that it has doubled, then once in a pass over the data.
    """

    @dataclass(frozen=True)
    class Config(MultiCrop.Config):
        """clusters: the paper's 3000 are for a million pictures; far fewer than there are samples.
        samples: slots of the bank; where there are more samples than that, those that find theirs taken are balanced.
        temperature: of the softmax.
        iterations: of k-means. The paper has three sets of 3000 centroids from the projections of two crops in turns; this
        has one, of the first crop's.
        """

        global_scale: tuple[float, float] = (0.14, 1.0)
        local_scale: tuple[float, float] = (0.05, 0.14)
        clusters: int = 3000
        samples: int = 65536
        temperature: float = 0.1
        iterations: int = 10

        def __post_init__(self) -> None:
            super().__post_init__()
            above_zero(self, "clusters", "samples", "temperature", "iterations")
            if 2 * self.clusters > self.samples:  # of more, samples that share rows of the bank could leave too few
                raise UserError(
                    f"setting 'pretext.clusters' is {self.clusters}; it must be at most half of pretext.samples, {self.samples}"
                )

    family = "clustering"
    paper = "Caron et al. 2020, arXiv:2006.09882"
    wants = frozenset({"variety"})
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {
        "image": {"clusters": 100, "local": 4, "global_scale": [0.3, 1.0], "local_scale": [0.1, 0.4]}
    }
    bank: Tensor
    owner: Tensor
    cluster: Tensor
    centroids: Tensor
    written: Tensor

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config)
        none = torch.full((config.samples,), -1)
        self.register_buffer("bank", torch.zeros(config.samples, config.out))
        self.register_buffer("owner", none)  # the sample that a row is of
        self.register_buffer("cluster", none.clone())  # its cluster; -1: not clustered since it took the slot
        self.register_buffer("centroids", F.normalize(torch.randn(config.clusters, config.out), dim=1))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))  # rows since the last clustering
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._key = 0

    def forward(self, batch: Batch) -> Step:
        views = self.drawn(batch)
        z = normalize(self.head(self.encoded(views))).unflatten(0, (len(views), -1))
        with torch.autocast(z.device.type, enabled=False):
            target, clustered = self.targets(batch.index, z[0].detach())
            logits = (z @ self.centroids.T / self.config.temperature).flatten(0, 1)
            wanted = target.repeat(len(views))
            loss = token_cross_entropy(logits, wanted)
        if self.training:
            self._seen.append((batch.index, z[0].detach()))
            self._key = rng.fold(batch.seed, batch.step, _START)
        return Step(loss, {"accuracy": token_accuracy(logits, wanted), "clustered": clustered.float().mean()})

    def targets(self, index: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The centroid [N] that each sample is sent to, and whether k-means found it, bool [N]."""
        slot = index % self.config.samples
        owner, cluster = self.owner[slot], self.cluster[slot]
        balanced = sinkhorn(z @ self.centroids.T).argmax(1)
        # What is measured may be of another source, whose indices mean nothing here.
        clustered = (owner == index) & (cluster >= 0) & self.training
        return torch.where(clustered, cluster, balanced), clustered

    def after_step(self, progress: float) -> None:
        for index, z in self._seen:
            self.store(gather(index), gather(z))
        seen = bool(self._seen)
        self._seen.clear()
        filled = self.owner >= 0
        n, clustered, written = torch.stack([filled.sum(), (self.cluster >= 0).sum(), self.written]).tolist()
        if seen and n < self.config.clusters and written >= 2 * n:
            raise UserError(
                f"setting 'pretext.clusters' is {self.config.clusters}, and there are {n} training samples; use far fewer"
            )
        if seen and n >= self.config.clusters and (2 * clustered <= n or written >= n):
            self.recluster(filled)

    def store(self, index: Tensor, z: Tensor) -> None:
        """Write rows to their slots; of several for one slot the last stays, on every rank and device alike."""
        slot = index % self.config.samples
        again = (slot[:, None] == slot).triu(1).any(1)
        slot, index, z = slot[~again], index[~again], z[~again]
        self.cluster[slot] = torch.where(self.owner[slot] == index, self.cluster[slot], -1)
        self.owner[slot] = index
        self.bank[slot] = z.to(self.bank.dtype)
        self.written += len(slot)

    def recluster(self, filled: Tensor) -> None:
        """k-means on the rows of the bank from random ones of them, which depend on seed and step alone."""
        rows, at = self.bank[filled], filled.nonzero()[:, 0]
        start = rng.uniform(self._key, at, 1)[:, 0].argsort(stable=True)[: self.config.clusters]
        centroids, found = spherical_kmeans(rows, rows[start], self.config.iterations)
        self.centroids.copy_(centroids)
        self.cluster[at] = found
        self.written.zero_()

    def chance(self, batch_size: int) -> float:
        """Every cluster as likely as another."""
        return log(self.config.clusters)
