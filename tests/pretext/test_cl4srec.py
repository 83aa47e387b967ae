"""cl4srec: two different operations a pair, and the loss that the paper writes."""

import math

import pytest
import torch
from torch.nn import functional as F

from selftaught.errors import UserError
from selftaught.modality.event import EventView
from selftaught.pretext.cl4srec import CL4SRec
from tests.contracts.conftest import batch_of, make


def naive(task: CL4SRec, batch) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Next item row by row and event by event (eq. 13 over all items); NT-Xent view by view (eq. 3)."""
    table = task.encoder.embeddings  # type: ignore[attr-defined]
    terms = []
    for row, n in enumerate(batch.inputs["length"].tolist()):
        ids = batch.inputs["items"][row, max(0, n - 13) : n]
        for at in range(1, len(ids)):
            before = {"items": ids[None, :-1], "length": torch.tensor([len(ids) - 1])}
            tokens = task.modality.plain(type(batch)(before, batch.index[:1], 0, 0))
            state = task.encoder(tokens).tokens[0, at - 1]
            scores = table[1:-1] @ state
            terms.append(scores.logsumexp(0) - scores[ids[at] - 1])
    views = [task.encoder(x).pooled for x in task.drawn(batch)]
    z = torch.stack(views, 1).flatten(0, 1)  # s1, s1', s2, s2', ...
    contrast = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        score = torch.stack([z[i] @ z[j] for j in others])
        contrast.append(score.logsumexp(0) - z[i] @ z[i ^ 1])
    return torch.stack(terms).mean() + task.config.weight * torch.stack(contrast).mean()


def test_the_loss_and_its_gradient_are_the_papers() -> None:
    task, batch = make("cl4srec", similarity="dot", temperature=1.0).eval(), batch_of("cl4srec", 8)
    found = {}
    for name, loss in (("ours", task(batch).loss), ("naive", naive(task, batch))):  # type: ignore[arg-type]
        task.zero_grad()
        loss.backward()
        found[name] = loss.detach(), [p.grad.clone() for p in task.parameters() if p.grad is not None]
    torch.testing.assert_close(found["ours"][0], found["naive"][0], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found["ours"][1], found["naive"][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_two_views_are_of_two_operations() -> None:
    """Told by what each does: crop alone shortens, mask alone hides, reorder alone keeps all items in another order."""
    task, batch = make("cl4srec"), batch_of("cl4srec", 400)
    x = task.modality.plain(batch)
    long = x.valid.sum(1) >= 8

    def operation(view, row: int) -> str:  # type: ignore[no-untyped-def]
        if (view.ids[row] == task.modality.mask).any():  # type: ignore[union-attr]
            return "mask"
        return "crop" if view.valid[row].sum() < x.valid[row].sum() else "reorder"

    first, second = task.drawn(batch)  # type: ignore[operator]
    pairs = [(operation(first, i), operation(second, i)) for i in long.nonzero()[:, 0].tolist()]
    assert all(a != b for a, b in pairs)
    assert len(set(pairs)) == 6
    shares = [sum(a == name for a, _ in pairs) / len(pairs) for name in ("crop", "mask", "reorder")]
    assert all(0.2 < share < 0.47 for share in shares)


def test_one_operation_alone_is_drawn_twice() -> None:
    task, batch = make("cl4srec", view={"mask": None, "reorder": None}), batch_of("cl4srec", 100)
    first, second = task.drawn(batch)  # type: ignore[operator]
    length = task.modality.plain(batch).valid.sum(1)
    for view in (first, second):
        assert torch.equal(view.valid.sum(1), (length * 0.6).floor().clamp_min(1).long())
    assert not torch.equal(first.ids, second.ids)
    nothing = EventView(crop=None, mask=None, reorder=None)
    assert torch.equal(task.modality.pair(batch, nothing)[1].ids, task.modality.plain(batch).ids)  # type: ignore[union-attr]


def test_cosine_compares_directions_alone() -> None:
    task, batch = make("cl4srec", temperature=0.1).eval(), batch_of("cl4srec")
    z1, z2 = (F.normalize(task.encoder(x).pooled, dim=1) for x in task.drawn(batch))  # type: ignore[operator]
    z = torch.cat([z1, z2])
    scores = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(scores, torch.arange(len(z)).roll(len(z1)))
    torch.testing.assert_close(task(batch).metrics["contrast"], expected.detach(), rtol=1e-4, atol=1e-4)
    assert task.chance(24) == pytest.approx(math.log(40) + 0.1 * math.log(47))
    for settings, message in (({"temperature": 0.0}, "temperature is 0"), ({"weight": -1.0}, "weight is -1")):
        with pytest.raises(UserError, match=message):
            CL4SRec.Config(**settings)
