"""Losses beside lightly 1.6 on the same inputs and parameters: values and gradients agree to 1e-5, or it is said how the
definitions differ and the same difference is found.

    .venv-peers/bin/python benchmarks/parity.py          (make parity)

A relative difference of the values and the largest one of the gradients, over the largest gradient, each in float32. Exit
code 1 if one is above 1e-5.
"""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

# isort: off
import selftaught.encoders  # noqa: F401  # first: makes torchvision importable beside a CPU-only torch

# isort: on
import torch
from lightly import loss as peer
from lightly.models import utils as peer_utils
from lightly.models.modules import NNMemoryBankModule
from torch import Tensor
from torch.nn import functional as F

from selftaught.losses.clusters import across_views, sinkhorn
from selftaught.losses.contrastive import info_nce, normalize, nt_xent
from selftaught.losses.cosine import mean_cosine
from selftaught.losses.decorrelation import barlow_twins, vicreg
from selftaught.modality.image.units import patchify

TOLERANCE = 1e-5
N, D = 64, 32


class Pair(NamedTuple):
    """The same loss twice, as functions of the same tensors. note: how the published definitions differ."""

    name: str
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...] = ((N, D), (N, D))
    note: str = ""


def pairs() -> Iterator[Pair]:
    """Every loss that both have."""
    for tau in (0.5, 0.1):
        yield Pair(f"SimCLR, temperature {tau}", lambda a, b, t=tau: nt_xent(a, b, t).loss, peer.NTXentLoss(tau))
        yield Pair(
            f"DCL, temperature {tau}",
            lambda a, b, t=tau: nt_xent(a, b, t, decoupled=True).loss,
            peer.DCLLoss(tau),
        )
    yield Pair(
        "DCLW",
        lambda a, b: nt_xent(a, b, 0.1, decoupled=True, sigma=0.5).loss,
        peer.DCLWLoss(temperature=0.1, sigma=0.5),
    )
    yield moco()
    yield nnclr()
    cosine = peer.NegativeCosineSimilarity()
    yield Pair(
        "SimSiam",
        lambda p1, p2, z1, z2: -(mean_cosine(p1, z2.detach()) + mean_cosine(p2, z1.detach())) / 2,
        lambda p1, p2, z1, z2: (cosine(p1, z2.detach()) + cosine(p2, z1.detach())) / 2,
        ((N, D),) * 4,
    )
    yield Pair(
        "BYOL",
        lambda p1, p2, z1, z2: 4 - 2 * mean_cosine(p1, z2.detach()) - 2 * mean_cosine(p2, z1.detach()),
        lambda p1, p2, z1, z2: 4 + 4 * (cosine(p1, z2.detach()) + cosine(p2, z1.detach())) / 2,
        ((N, D),) * 4,
        note="lightly takes the mean of two negative cosines; the paper's 2 - 2 cos, summed, is 4 + 4 times that",
    )
    yield Pair("Barlow Twins", lambda a, b: barlow_twins(a, b, 5e-3).loss, peer.BarlowTwinsLoss(5e-3))
    yield Pair(
        "VICReg",
        lambda a, b: vicreg(a, b, invariance=25, variance=25, covariance=1).loss,
        peer.VICRegLoss(),
    )
    yield swav()
    yield dino()
    yield Pair(
        "MAE", lambda x, y: mae(patchify(x, 4), y), lambda x, y: mae(peer_utils.patchify(x, 4), y),
        ((N, 3, 16, 16), (N, 16, 48)),
    )  # fmt: skip


def moco() -> Pair:
    """A queue that both hold."""
    keys = F.normalize(torch.randn(256, D, generator=torch.Generator().manual_seed(1)), dim=1)

    def theirs(query: Tensor, key: Tensor) -> Tensor:
        criterion = peer.NTXentLoss(0.2, memory_bank_size=(256, D))
        criterion.memory_bank.bank = keys.clone()
        return criterion(query, key.detach())

    return Pair("MoCo", lambda q, k: info_nce(q, k.detach(), 0.2, negatives=keys).loss, theirs)


def nnclr() -> Pair:
    """Neighbours from the same support set; lightly then compares within views too."""
    bank = F.normalize(torch.randn(256, D, generator=torch.Generator().manual_seed(2)), dim=1)
    module = NNMemoryBankModule(size=(256, D))
    module.bank = bank.clone()

    def theirs(z: Tensor, p: Tensor) -> Tensor:
        return peer.NTXentLoss(0.1)(module(z.detach()), p)

    def ours(z: Tensor, p: Tensor) -> Tensor:
        nearest = bank[(normalize(z.detach()) @ bank.T).argmax(1)]
        return nt_xent(nearest, p, 0.1).loss

    note = "lightly's is NT-Xent, made here of our parts; the paper's and our task's is InfoNCE of neighbours and predictions"
    return Pair("NNCLR", ours, theirs, note=note)


def swav() -> Pair:
    """Two global and three local views' scores of 16 prototypes."""

    def ours(scores: Tensor) -> Tensor:
        codes = torch.stack([sinkhorn(s.detach()) for s in scores[:2]])
        return across_views(scores / 0.1, codes)

    return Pair("SwAV", ours, lambda s: peer.SwaVLoss()(list(s[:2]), list(s[2:]))[0], ((5, N, 16),))


def dino() -> Pair:
    """Two teacher and five student views of 16 prototypes, with a centre."""
    centre = torch.randn(16, generator=torch.Generator().manual_seed(3)) * 0.1

    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        return across_views(student / 0.1, ((teacher.detach() - centre) / 0.04).softmax(-1))

    def theirs(student: Tensor, teacher: Tensor) -> Tensor:
        criterion = peer.DINOLoss(16)
        criterion.center.copy_(centre[None, None])
        return criterion(list(teacher.detach()), list(student), teacher_temp=0.04)

    return Pair("DINO", ours, theirs, ((5, N, 16), (2, N, 16)))


def mae(patches: Tensor, predicted: Tensor) -> Tensor:
    """Mean squared error of standardised patches."""
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return F.mse_loss(predicted, (patches - mean) / (var + 1e-6) ** 0.5)


def compare(pair: Pair) -> tuple[float, float, float, float]:
    """Both values, their relative difference, and that of the gradients."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator) for shape in pair.shapes]
    found = []
    for loss in (pair.ours, pair.theirs):
        tensors = [x.clone().requires_grad_() for x in given]
        value = loss(*tensors)
        gradients = torch.autograd.grad(value, tensors, allow_unused=True)
        found.append((value.item(), [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, given)]))
    (ours, mine), (theirs, others) = found
    scale = max(g.abs().max().item() for g in others)
    apart = max((a - b).abs().max().item() for a, b in zip(mine, others)) / scale
    return ours, theirs, abs(ours - theirs) / max(abs(theirs), 1e-12), apart


def main() -> int:
    worst = 0.0
    print(f"{'':<26}{'ours':>14}{'lightly':>14}{'value':>10}{'gradient':>10}")
    for pair in pairs():
        ours, theirs, value, gradient = compare(pair)
        worst = max(worst, value, gradient)
        print(f"{pair.name:<26}{ours:>14.6f}{theirs:>14.6f}{value:>10.1e}{gradient:>10.1e}  {pair.note}")
    print("all agree" if worst <= TOLERANCE else f"differs by {worst:.1e}, more than {TOLERANCE:g}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
