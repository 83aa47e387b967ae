"""Codes, KoLeo, the centre and the bank on two ranks are those of the whole batch in one process."""

import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import runs
from tests.contracts.conftest import make

from selftaught.losses.clusters import koleo, sinkhorn, soft_cross_entropy, used
from selftaught.pretext.distillation import Centre


def data(seed: int, n: int = 16, d: int = 6) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def naive_koleo(x: torch.Tensor) -> torch.Tensor:
    x = x / x.norm(dim=1, keepdim=True)
    total = torch.zeros((), dtype=x.dtype)
    for i in range(len(x)):
        distances = torch.stack([(x[i] - x[j]).norm() for j in range(len(x)) if j != i])
        total = total - distances.min().log()
    return total / len(x)


def test_koleo_is_the_published_one() -> None:
    x = data(0).double().requires_grad_()
    naive_koleo(x).backward()
    assert x.grad is not None
    y = x.detach().clone().requires_grad_()
    loss = koleo(y)
    assert loss.item() == pytest.approx(naive_koleo(x).item(), rel=1e-9)
    loss.backward()
    torch.testing.assert_close(y.grad, x.grad)
    assert torch.isfinite(torch.autograd.grad(koleo(z := torch.ones(4, 3).requires_grad_()), z)[0]).all()


def test_soft_cross_entropy_in_value_and_gradient() -> None:
    logits, target = data(1).double().requires_grad_(), data(2).double().softmax(1)
    each = soft_cross_entropy(logits, target)
    for i in range(16):
        e = torch.exp(logits[i])
        assert each[i].item() == pytest.approx(-(target[i] * torch.log(e / e.sum())).sum().item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(each.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(1) - target)


def test_used_counts_prototypes() -> None:
    codes = torch.eye(5).repeat(3, 1)
    assert used(codes).item() == pytest.approx(5)
    assert used(codes[:1].repeat(4, 1)).item() == pytest.approx(1)


def task_bank() -> Any:
    return make("deepcluster", clusters=4, samples=64, out=6, hidden=8, local=0)


def _rank(rank: int, whole: str) -> None:
    mine = slice(8 * rank, 8 * rank + 8)
    scores, counted = data(3), torch.arange(16) % 3 > 0
    one = load_file(whole)
    torch.testing.assert_close(sinkhorn(scores[mine], 0.3, 3), one["codes"][mine])
    torch.testing.assert_close(sinkhorn(scores[mine], 0.3, 3, counted[mine]), one["counted"][mine])

    x = data(4).requires_grad_()  # the gradient is the mean over ranks
    koleo(x[mine]).backward()
    assert x.grad is not None
    torch.distributed.all_reduce(x.grad)
    torch.testing.assert_close(x.grad / 2, one["koleo"])

    centre = Centre(6)
    centre.saw(data(5)[:11] if rank == 0 else data(5)[11:])
    centre.update(0.9)
    torch.testing.assert_close(centre.value, data(5).mean(0) * 0.1)

    task = task_bank()
    task._seen.append((torch.arange(16)[mine] * 5, torch.nn.functional.normalize(data(6), dim=1)[mine]))
    task.after_step(0.5)
    for name in ("bank", "owner", "cluster", "centroids"):
        torch.testing.assert_close(getattr(task, name), one[name])


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback is tested on Linux")
def test_two_ranks_agree_with_one(tmp_path: Any) -> None:
    x = data(4).requires_grad_()
    koleo(x).backward()
    assert x.grad is not None
    task = task_bank()
    task._seen.append((torch.arange(16) * 5, torch.nn.functional.normalize(data(6), dim=1)))
    task.after_step(0.5)
    assert int((task.cluster >= 0).sum()) == 16
    whole = {name: getattr(task, name) for name in ("bank", "owner", "cluster", "centroids")}
    whole |= {"codes": sinkhorn(data(3), 0.3, 3), "koleo": x.grad}
    whole |= {"counted": sinkhorn(data(3), 0.3, 3, torch.arange(16) % 3 > 0)}
    save_file(whole, tmp_path / "whole.safetensors")
    runs.on_ranks(_rank, str(tmp_path / "whole.safetensors"))
