"""I-JEPA against its paper and its authors' loss, and the collapse that its averaged encoder prevents."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from selftaught.batch import Batch
from selftaught.encoders import EncoderConfig
from selftaught.encoders.timm_models import ViTEncoder
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality
from selftaught.modality.image.units import patchify, unpatchify
from selftaught.pretext.ijepa import IJEPA
from tests.contracts.conftest import SIZE, make, small_digits


def jepa(**settings: Any) -> IJEPA:
    task = make("ijepa", **settings)
    assert isinstance(task, IJEPA)
    return task


def moved(task: IJEPA) -> IJEPA:
    """With an encoder that has left its average."""
    with torch.no_grad():
        for i, p in enumerate(task.encoder.parameters()):
            p.add_(0.01 * torch.sin(torch.arange(p.numel()) + i).view_as(p))
    return task.eval()


def test_loss_is_the_published_one(batch: Batch) -> None:
    """Block by block and picture by picture, in float64: value, and gradient of the predictor's last layer."""
    task = moved(jepa())
    loss = task(batch).loss
    loss.backward()
    x = task.modality.view(batch, task.view, stream=1)
    keep, at = task.blocks(batch)
    with torch.no_grad():
        whole = task.target.module(x).tokens.double()
        seen = task.encoder(x, keep).tokens
    last, before = task.predictor.predict, list[torch.Tensor]()
    last.register_forward_pre_hook(lambda part, given: before.append(given[0].detach().double()))
    weight = last.weight.detach().double().requires_grad_()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(x)):
        for block in at[i]:
            task.predictor(seen[i : i + 1], keep[i : i + 1], block[None])
            guesses = before.pop()[0] @ weight.T + last.bias.detach().double()
            for guess, patch in zip(guesses, block.tolist(), strict=True):
                token = whole[i, patch]
                token = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
                far = (guess - token).abs()
                total = total + torch.where(far < 1, far.square() / 2, far - 0.5).sum()
                count += len(token)
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-4)
    naive = torch.autograd.grad(total / count, weight)[0]
    assert last.weight.grad is not None
    torch.testing.assert_close(last.weight.grad.double(), naive, rtol=1e-3, atol=1e-6)


def test_each_block_is_predicted_by_itself(batch: Batch) -> None:
    """No target's place tells of another's: with one block alone the predictions are the same."""
    task = moved(jepa())
    x, keep, at = task.drawn(batch)
    seen, read = task.encoder(x, keep).tokens, list[torch.Tensor]()
    task.predictor.register_forward_hook(lambda part, given, out: read.append(out))
    task(batch)
    together = read[0].view(len(x), 4, at.shape[2], -1)
    torch.testing.assert_close(together[:, 2], task.predictor(seen, keep, at[:, 2]), rtol=1e-4, atol=1e-5)


def test_the_context_never_shows_a_target(batch: Batch) -> None:
    task = moved(jepa())
    sizes = set()
    for step in range(200):
        keep, at = task.blocks(dataclasses.replace(batch, step=step))
        sizes.add((keep.shape[1], at.shape[2]))
        for mine, targets in zip(keep.tolist(), at.flatten(1).tolist(), strict=True):
            assert len(set(mine)) == len(mine)
            assert not set(mine) & set(targets)
    assert {a for _, a in sizes} == {8, 9, 12}  # .15 to .2 of 64 patches, in whole sides
    assert all(6 <= k <= 28 for k, _ in sizes)
    x, keep, at = task.drawn(batch)
    patches = patchify(x, task.encoder.patch)
    noise = patches.scatter(1, at.flatten(1)[..., None].expand(-1, -1, patches.shape[2]), 7.0)
    other = unpatchify(noise, task.encoder.patch, task.encoder.grid)
    assert not torch.equal(x, other)
    assert torch.equal(task.encoder(x, keep).tokens, task.encoder(other, keep).tokens)


def test_blocks_are_of_the_sample_and_their_sides_of_the_step(batch: Batch) -> None:
    """So ranks draw what one process draws, whichever samples they have."""
    task = jepa()
    keep, at = task.blocks(batch)
    rows = torch.tensor([7, 3])
    part = Batch({k: v[rows] for k, v in batch.inputs.items()}, batch.index[rows], batch.seed, batch.step)
    mine = task.blocks(part)
    assert torch.equal(mine[0], keep[rows])
    assert torch.equal(mine[1], at[rows])
    assert len({row.numpy().tobytes() for row in at}) > len(batch) // 2
    assert len({task.sides(dataclasses.replace(batch, step=s)) for s in range(50)}) > 1


def test_a_context_below_the_least_is_filled_beyond_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a picture of few patches targets can cover the whole context block; what is shown is no target even then."""
    task = jepa(context_scale=(0.1, 0.1))
    monkeypatch.setattr("selftaught.pretext.ijepa._OTHERS", 1)
    batch = Batch({}, torch.arange(500), 0, 0)
    short = 0
    for step in range(20):
        other = dataclasses.replace(batch, step=step)
        keep, at = task.blocks(other)
        covered = torch.zeros(500, 64).scatter(1, at.flatten(1), 1.0)
        assert not covered.gather(1, keep).any()
        rows = keep // 8
        short += int((rows.amax(1) - rows.amin(1) >= task.sides(other)[0][0]).sum())
    assert short > 0


def test_targets_shrink_where_they_would_cover_the_picture(batch: Batch) -> None:
    task = jepa(targets=6, target_scale=(0.3, 0.3), target_aspect=(1.0, 1.0))
    (_, _), (height, width) = task.sides(batch)
    assert 6 * height * width < 64 <= 6 * (height + 1) * width
    assert torch.isfinite(task(batch).loss)


def test_the_target_follows_the_encoder_alone(batch: Batch) -> None:
    """No gradient; 0.996 of the old at first, all of it at the end, linearly between."""
    task = jepa()
    for p in task.target.parameters():
        assert not p.requires_grad
    old = task.target.module.model.pos_embed.clone()
    with torch.no_grad():
        task.encoder.model.pos_embed.add_(1.0)
    for progress, expected in ((0.0, 0.004), (0.5, 0.002), (1.0, 0.0)):
        task.target.module.model.pos_embed.data.copy_(old)
        task.after_step(progress)
        change = (task.target.module.model.pos_embed - old).mean().item()
        assert change == pytest.approx(expected, abs=1e-6)
    task = moved(task)
    task(batch).loss.backward()
    assert all(p.grad is None for p in task.target.parameters())


def test_targets_that_know_their_place_alone_have_no_spread(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known failure: measured over blocks that lie at different places it was large while the targets had collapsed."""
    task = make("ijepa")
    assert isinstance(task, IJEPA)
    assert task(batch).metrics["target_std"] > 0.01
    of_place = torch.randn(64, task.encoder.token_width, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(task, "wanted", lambda x: of_place.expand(len(x), -1, -1))
    assert task(batch).metrics["target_std"] < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_scale": (0.2, 0.1)}, r"target_scale' is \(0.2, 0.1\)"),
        ({"context_scale": (0.5, 1.5)}, r"context_scale' is .* in \(0, 1\]"),
        ({"target_aspect": (0.0, 1.0)}, r"target_aspect' is .* above 0"),
        ({"targets": 0}, r"targets' is 0; it must be 1 or more"),
        ({"targets": 64}, r"targets' is 64; it must be below the picture's 64 patches"),
        ({"momentum": 1.1}, r"momentum' is 1.1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jepa(**settings)


class Unguarded(IJEPA):
    """What the paper warns of: the encoder makes its own targets, and learns to make them easy."""

    def wanted(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(x).tokens
        return F.layer_norm(tokens, tokens.shape[-1:])


def spreads(kind: type[IJEPA], steps: int) -> list[float]:
    """Standard deviation over pictures of the encoder's normalised tokens at a place, before and after a short run."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "img_size": SIZE,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
    }
    model = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", num_classes=0, **shape)
    encoder = ViTEncoder(EncoderConfig("vit_micro", SIZE, 1), model)
    task = kind(encoder, ImageModality(SIZE, 1, (0.3,), (0.37,)), kind.Config())
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=2e-3)
    data = small_digits()

    def fetch(step: int) -> Batch:
        index = data.train[np.arange(step * 32, step * 32 + 32) % len(data.train)]
        return Batch(data.source.fetch(index), torch.from_numpy(index), 0, step)

    found = []
    x = task.modality.plain(fetch(0))
    for step in range(steps + 1):
        if step in (0, steps):
            with torch.no_grad():
                tokens = task.encoder(x).tokens
                found.append(F.layer_norm(tokens, tokens.shape[-1:]).std(0).mean().item())
        optimizer.zero_grad()
        task(fetch(step)).loss.backward()
        optimizer.step()
        task.after_step(step / steps)
    return found


def test_without_the_averaged_encoder_it_collapses() -> None:
    begin, end = spreads(Unguarded, 120)
    assert end < 0.1 * begin, (begin, end)
    begin, end = spreads(IJEPA, 120)
    assert end > 0.5 * begin, (begin, end)
