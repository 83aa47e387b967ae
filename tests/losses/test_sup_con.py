"""sup_con against equation 2 of its paper, in float64 and in loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests import runs
from torch import Tensor
from torch.nn import functional as F

from selftaught.losses import contrastive
from selftaught.losses.contrastive import nt_xent, sup_con

LABELS = {
    "all": [0, 1, 0, 2, 1, 0, 2, 2, 0, 1, 0],
    "some": [0, -1, 0, 2, -1, -1, 2, -1, 0, -1, 7],
    "each a class of one": [3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97],
    "one class": [5] * 11,
    "of any size": [10**15, -1, 10**15, 0, -7, 0, -1, 2**62, 2**62, -7, -1],
}


def naive(z1: Tensor, z2: Tensor, labels: list[int], temperature: float) -> Tensor:
    """Khosla et al. 2020, eq. 2: outside the logarithm, the mean over the positives P(i) of an anchor."""
    n = len(labels)
    z = F.normalize(torch.cat([z1, z2]).double(), dim=1)
    losses = []
    for i in range(2 * n):
        others = [a for a in range(2 * n) if a != i]
        of_class = [a for a in others if labels[a % n] == labels[i % n] and labels[i % n] >= 0]
        positives = of_class or [(i + n) % (2 * n)]
        assert (i + n) % (2 * n) in positives
        s = z @ z[i] / temperature
        losses.append(torch.stack([s[others].logsumexp(0) - s[p] for p in positives]).mean())
    return torch.stack(losses).mean()


def views(n: int = 11, d: int = 6) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(n, d, generator=g)
    return [(3 * (shared + torch.randn(n, d, generator=g))).requires_grad_() for _ in range(2)]


def gradient(loss: Tensor, inputs: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, inputs, retain_graph=True)])


@pytest.mark.parametrize("tile", [8, 512])
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_it_is_the_published_formula(
    labels: list[int], temperature: float, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "_TILE", {"cpu": tile})
    z = views()
    ours, expected = sup_con(*z, torch.tensor(labels), temperature).loss, naive(*z, labels, temperature)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    error = gradient(ours, z) - gradient(expected, z)
    assert error.norm() < 1e-4 * gradient(expected, z).norm()


@pytest.mark.parametrize("unknown", [[-1] * 11, list(range(-1, -12, -1)), LABELS["each a class of one"]])
def test_without_labels_it_is_nt_xent_to_the_last_bit(unknown: list[int]) -> None:
    z = views()
    ours, reference = sup_con(*z, torch.tensor(unknown), 0.1), nt_xent(*z, 0.1)
    assert torch.equal(ours.loss, reference.loss)
    assert torch.equal(ours.accuracy, reference.accuracy)
    assert torch.equal(gradient(ours.loss, z), gradient(reference.loss, z))


def test_the_unknown_are_no_class() -> None:
    """The failure it guards against: -1 taken for a label draws all samples without one together."""
    z, labels = views(), LABELS["some"]
    as_class = naive(*z, [99 if label < 0 else label for label in labels], 0.1)
    assert (sup_con(*z, torch.tensor(labels), 0.1).loss - as_class).abs() > 0.1


def test_names_and_order_of_classes_do_not_matter() -> None:
    z1, z2 = views()
    labels = torch.tensor(LABELS["some"])
    reference = sup_con(z1, z2, labels, 0.1).loss
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    for a, b, y in [(z1[order], z2[order], labels[order]), (z2, z1, labels), (z1, z2, labels * 3)]:
        torch.testing.assert_close(sup_con(a, b, y, 0.1).loss, reference)
    torch.testing.assert_close(sup_con(z1, z2, torch.where(labels == 0, 5, labels), 0.1).loss, reference)


def test_gradcheck_and_dtypes() -> None:
    z, labels = views(7, 4), torch.tensor([0, -1, 0, 2, -1, 2, 2])
    double = [x.detach().double().requires_grad_() for x in z]
    assert torch.autograd.gradcheck(lambda a, b: sup_con(a, b, labels, 0.2).loss, double)
    assert sup_con(*double, labels, 0.2).loss.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = sup_con(*z, labels, 0.2).loss
    torch.testing.assert_close(under, sup_con(*z, labels, 0.2).loss, rtol=0, atol=0)


def test_errors_are_those_of_nt_xent() -> None:
    z = torch.ones(4, 3)
    with pytest.raises(ValueError, match="is not above 0"):
        sup_con(z, z, torch.zeros(4, dtype=torch.long), 0.0)


def _whole() -> tuple[list[Tensor], Tensor, Tensor]:
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return [z.detach() for z in views(12)], torch.tensor([0, 1, -1, 0, 2, -1, 1, 0, -1, 4, 2, 0]), weight


def _rank(rank: int, folder: str) -> None:
    (z1, z2), labels, weight = _whole()
    own = slice(6 * rank, 6 * rank + 6)
    found = sup_con(z1[own] @ weight, z2[own] @ weight, labels[own], 0.2)
    figures = torch.cat([found.loss.detach()[None], torch.autograd.grad(found.loss, weight)[0].flatten()])
    dist.all_reduce(figures)
    if rank == 0:
        np.save(Path(folder) / "figures.npy", (figures / 2).numpy())


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Classes have members on both ranks, and so have the samples of no class."""
    runs.on_ranks(_rank, str(tmp_path))
    together = torch.from_numpy(np.load(tmp_path / "figures.npy"))
    (z1, z2), labels, weight = _whole()
    loss = sup_con(z1 @ weight, z2 @ weight, labels, 0.2).loss
    torch.testing.assert_close(together[0], loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[1:], torch.autograd.grad(loss, weight)[0].flatten(), rtol=1e-5, atol=1e-5)
