"""iBOT against the equations of its paper, written out in loops, and its masks against BEiT's algorithm."""

from typing import Any

import pytest
import torch

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.modality.image.masks import block_draws, block_masks
from selftaught.pretext import distillation
from selftaught.pretext.distillation import Centre
from selftaught.pretext.ibot import IBOT
from tests.contracts.conftest import make
from tests.pretext.test_dino import naive_loss

SMALL: dict[str, Any] = {"prototypes": 24, "hidden": 48, "out": 16, "local": 1}


def small(**settings: Any) -> IBOT:
    task = make("ibot", **{**SMALL, **settings})
    assert isinstance(task, IBOT)
    return task


def heads(task: IBOT) -> tuple[list[Any], list[Any]]:
    """(encoder, head, prototypes, patch head, patch prototypes) of student and of teacher."""
    own = list(task.teacher.module.children())
    if task.patch_teacher is None:
        return [task.encoder, task.head, task.prototypes, task.head, task.prototypes], own + own[1:]
    return [task.encoder, task.head, task.prototypes, *task.own], own + list(task.patch_teacher.module.children())


@pytest.mark.parametrize("shared", [True, False])
def test_loss_and_gradient_are_the_published_ones(batch: Batch, shared: bool) -> None:
    task = small(shared_head=shared).eval()
    generator = torch.Generator().manual_seed(0)
    for centre in (task.centre, task.patch_centre):
        centre.value.copy_(torch.randn(24, generator=generator) * 0.1)
    task.progress.fill_(0.5)
    loss, metrics = task(batch)
    loss.backward()

    views = task.drawn(batch)
    hidden = task.hidden(batch, views).chunk(2)
    student, teacher = heads(task)
    total, n = torch.zeros((), dtype=torch.float64), len(batch)
    tokens: list[torch.Tensor] = []
    for view, mask in zip(views, hidden, strict=False):
        read = student[0](view, hide=(mask, task.mask_token))
        s, t = (
            prototypes(head(x.flatten(0, 1))).double().unflatten(0, (n, -1))
            for head, prototypes, x in [(*student[3:], read.tokens), (*teacher[3:], teacher[0](view).tokens)]
        )
        tokens.append(read.pooled)
        for i in range(n):
            for j in mask[i].nonzero()[:, 0].tolist():
                p = torch.exp((t[i, j] - task.patch_centre.value) / 0.07).detach()
                q = torch.exp(s[i, j] / 0.1)
                total = total - (p / p.sum() * torch.log(q / q.sum())).sum() / mask[i].sum() / (2 * n)
    z = [*tokens, student[0](views[2]).pooled]
    s = torch.stack([student[2](student[1](f)) for f in z]).double()
    with torch.no_grad():
        t = torch.stack([teacher[2](teacher[1](teacher[0](v).pooled)) for v in views[:2]]).double()
    of_views = naive_loss(s, t, task.centre.value.double(), 0.07)
    assert metrics["views"].item() == pytest.approx(of_views.item(), rel=1e-5)
    assert metrics["patches"].item() == pytest.approx(total.item(), rel=1e-5)
    assert loss.item() == pytest.approx((of_views + total).item(), rel=1e-5)
    names = ["mask_token", "prototypes.weight", "head.0.weight"] + ([] if shared else ["own.1.weight"])
    parameters = dict(task.named_parameters())
    naive = torch.autograd.grad(of_views + total, [parameters[n] for n in names])
    for name, gradient in zip(names, naive, strict=True):
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: n + m)


def test_only_hidden_patches_are_compared(batch: Batch) -> None:
    """Whatever the teacher says of patches that the student sees is no target: else it would be copied."""
    task = small().eval()
    hidden = task.hidden(batch, task.drawn(batch))
    encoder = task.teacher.module[0]
    plain = encoder.forward

    def changed(where: torch.Tensor) -> float:
        def forward(x: torch.Tensor) -> Any:
            found = plain(x)
            noise = torch.randn(found.tokens.shape, generator=torch.Generator().manual_seed(0))
            return found._replace(tokens=torch.where(where[..., None], noise, found.tokens))

        encoder.forward = forward
        return task(batch).loss.item()

    before = task(batch).loss.item()
    assert changed(~hidden) == before
    assert changed(hidden) != before


def test_the_student_does_not_see_what_is_hidden_and_the_teacher_does(batch: Batch) -> None:
    task = small().eval()
    x = task.drawn(batch)[0]
    hidden = task.hidden(batch, task.drawn(batch))[: len(x)]
    side = task.encoder.patch
    pixels = hidden.view(-1, 8, 8).repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    other = torch.where(pixels, 7.0, x)
    assert not torch.equal(x, other)
    seen = [task.encoder(v, hide=(hidden, task.mask_token)).tokens for v in (x, other)]
    torch.testing.assert_close(*seen, rtol=0, atol=0)
    assert not torch.equal(*(task.teacher.module[0](v).tokens for v in (x, other)))


def test_masks_have_the_shares_that_were_asked_for() -> None:
    grid, n = (14, 14), 600
    u = Batch({}, torch.arange(n), 1, 0).uniform(87, block_draws(grid))
    count = torch.arange(n) % 99  # 0 to half of 196
    mask = block_masks(u, grid, count)
    assert torch.equal(mask.sum(1), count)
    one = torch.cat([block_masks(u[i : i + 1], grid, count[i : i + 1]) for i in range(0, n, 50)])
    assert torch.equal(one, mask[::50])
    often = mask[count > 60].float().mean(0)
    assert often.min() > 0.02  # a corner is seldom inside a block
    assert often.max() < 0.8


def test_masks_are_blocks() -> None:
    """Hidden patches have hidden neighbours, unlike as many patches at random."""
    grid = (14, 14)
    u = Batch({}, torch.arange(400), 2, 0).uniform(87, block_draws(grid))
    count = torch.full((400,), 59)
    mask = block_masks(u, grid, count).view(-1, 14, 14)
    chance = (u[:, -196:].argsort(1).argsort(1) < 59).view(-1, 14, 14)
    beside = [(m[:, :, 1:] & m[:, :, :-1]).sum().item() / m[:, :, 1:].sum().item() for m in (mask, chance)]
    assert beside[0] > 0.65
    assert beside[1] < 0.35


def test_half_of_the_views_hide_a_tenth_to_a_half() -> None:
    task = small()
    blank = torch.zeros(1, 1, 16, 16).expand(2000, -1, -1, -1)
    hidden = task.hidden(Batch({}, torch.arange(2000), 1, 0), [blank])
    share = hidden.float().mean(1)
    some = share > 0
    assert 0.47 < some.float().mean() < 0.53
    assert share[some].min() >= 6 / 64
    assert share[some].max() <= 0.5
    assert share[some].mean() == pytest.approx(0.3, abs=0.01)
    assert not torch.equal(*hidden.chunk(2))


def test_centres_and_teachers_move_after_the_step_alone(batch: Batch) -> None:
    task = small(shared_head=False, momentum=0.5)
    assert task.patch_teacher is not None
    task(batch)
    assert not task.patch_centre.value.any()
    before = task.patch_teacher.module[1].weight.clone()
    with torch.no_grad():
        task.own[1].weight.add_(1.0)
    task.after_step(0.0)
    assert task.patch_centre.value.any()
    assert task.centre.value.any()
    assert not torch.equal(task.centre.value, task.patch_centre.value)
    torch.testing.assert_close(task.patch_teacher.module[1].weight, before + 0.5)


def test_koleo_spreads_features(batch: Batch) -> None:
    plain, spread = small().eval()(batch), small(koleo=0.1).eval()(batch)
    task = small().eval()
    views = task.drawn(batch)
    hidden = task.hidden(batch, views)
    x = torch.nn.functional.normalize(
        task.encoder(task.modality.join(views[:2]), hide=(hidden, task.mask_token)).pooled.double()
    )
    expected = torch.zeros((), dtype=torch.float64)
    for view in x.chunk(2):
        for i in range(len(view)):
            nearest = min((view[i] - view[j]).norm().item() for j in range(len(view)) if j != i)
            expected -= torch.tensor(nearest).log() / len(view)
    assert spread.metrics["koleo"].item() == pytest.approx(expected.item(), rel=1e-3)
    assert (spread.loss - plain.loss).item() == pytest.approx(0.1 * expected.item(), rel=1e-3)
    assert task.chance(8) is not None
    assert small(koleo=0.1).chance(8) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": (0.5, 0.1)}, "ratio"),
        ({"ratio": (0.0, 0.5)}, "ratio"),
        ({"masked": 0.0}, "masked"),
        ({"masked": 1.5}, "masked"),
        ({"koleo": -1.0}, "koleo"),
        ({"patch_weight": -1.0}, "patch_weight"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"pretext.{words}"):
        IBOT.Config(**settings)


def test_it_needs_an_encoder_that_can_hide() -> None:
    with pytest.raises(UserError, match="hide"):
        make("ibot", "resnet10_x0.25", **SMALL)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_head_of_its_own_bears_hardly_any_hidden_patches(count: int, norm: str) -> None:
    task = small(shared_head=False, norm=norm)
    width, heads = task.encoder.width, [task.head, task.prototypes, *task.own]
    views, patches = task.scores(heads, torch.randn(4, width), torch.randn(count, width))
    assert views.shape == (4, 24)
    assert patches.shape == (count, 24)
    (views.sum() + patches.sum()).backward()  # ranks that share gradients wait for those of all weights
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.own.parameters())
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[0, :count] = True
    task.patch_loss(patches, patches.detach(), hidden)
    task.patch_centre.update(0.9)
    torch.testing.assert_close(task.patch_centre.value, 0.1 * patches.detach().sum(0))


def test_every_rank_joins_in_moving_a_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known failure: a rank that had seen no scores left the others waiting for its sums."""
    joined: list[int] = []
    monkeypatch.setattr(distillation, "summed", lambda x: joined.append(x.numel()) or x)
    centre = Centre(4)
    centre.update(0.9)
    assert not centre.value.any()
    nothing = joined.copy()
    centre.saw(torch.ones(2, 4, dtype=torch.bfloat16))
    centre.update(0.9)
    assert joined == nothing * 2
    torch.testing.assert_close(centre.value, torch.full((4,), 0.1))
