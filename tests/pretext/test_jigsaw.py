"""Jigsaw puzzles: the permutations, the tiles, the loss, and the shortcuts that must not be there."""

import math

import numpy as np
import pytest
import torch

from selftaught import rng
from selftaught.batch import Batch
from selftaught.encoders import EncoderConfig, build
from selftaught.errors import UserError
from selftaught.modality.image import ImageModality
from selftaught.modality.image.tiles import cut, standardised
from selftaught.pretext.jigsaw import Jigsaw, far_apart
from tests.contracts.conftest import make


def test_tiles_are_the_squares_that_were_asked_for() -> None:
    x = torch.randn(3, 2, 9, 11)
    top, left = torch.tensor([[0, 5], [2, 1], [4, 4]]), torch.tensor([[7, 0], [3, 3], [1, 6]])
    tiles = cut(x, top, left, 4)
    for i in range(3):
        for k in range(2):
            r, c = top[i, k], left[i, k]
            assert torch.equal(tiles[i, k], x[i, :, r : r + 4, c : c + 4])


def test_permutations_are_different_and_far_apart() -> None:
    found = far_apart(100)
    assert torch.equal(found, far_apart(100))
    assert torch.equal(found.sort(1).values, torch.arange(9).expand(100, 9))
    differ = (found[:, None] != found[None]).sum(-1).fill_diagonal_(9)
    chance = np.stack([rng.permutation(9, 3, i) for i in range(100)])
    drawn = (chance[:, None] != chance[None]).sum(-1) + 9 * np.eye(100)
    assert differ.min() == 6 > drawn.min()
    assert (differ[0, 1], len(far_apart(2))) == (9, 2)


def test_each_permutation_is_the_farthest_left_in_the_pool() -> None:
    """Greedy by the smallest, then the mean distance to those before, against all permutations of four places."""
    chosen = far_apart(8, places=4).tolist()
    every = torch.cartesian_prod(*[torch.arange(4)] * 4)
    every = every[(every.sort(1).values == torch.arange(4)).all(1)].tolist()
    for n in range(1, 8):

        def key(p: list[int], n: int = n) -> tuple[int, int]:
            d = [sum(a != b for a, b in zip(p, q)) for q in chosen[:n]]
            return min(d), sum(d)

        assert key(chosen[n]) == max(key(p) for p in every)


def test_loss_is_the_published_one(batch: Batch) -> None:
    task = make("jigsaw", permutations=20, norm="layer").eval()
    step = task(batch)
    step.loss.backward()
    weight = task.head[-1].weight
    given = weight.grad.clone()

    x = task.modality.view(batch, task.view, stream=1)
    top, left, y = task.cells(batch)
    terms, right = [], 0
    for i in range(len(batch)):
        features = []
        for k in range(9):
            cell = task.permutations[y[i], k]
            r, c = top[i, cell], left[i, cell]
            tile = x[i, :, r : r + task.tile, c : c + task.tile].double()
            tile = (tile - tile.mean()) / torch.sqrt(tile.var(unbiased=False) + 1e-5)  # one channel
            features.append(task.encoder(tile.float()[None]).pooled[0])
        scores = task.head(torch.cat(features)[None])[0]
        terms.append(-torch.log_softmax(scores.double(), 0)[y[i]])
        right += int(scores.argmax() == y[i])
    expected = torch.stack(terms).mean()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert step.metrics["accuracy"].item() == pytest.approx(right / len(batch))
    torch.testing.assert_close(given, torch.autograd.grad(expected, weight)[0], rtol=1e-3, atol=1e-5)


def test_tiles_never_overlap_and_their_gaps_vary() -> None:
    """Without a gap the edges of neighbours continue each other, which solves the puzzle at a glance."""
    task = make("jigsaw", tile=64, permutations=2)
    assert task.cell == 75
    assert task.view.size == 225
    top, left, _ = task.cells(Batch({}, torch.arange(2000), 1, 0))
    for first, size in ((top.view(-1, 3, 3), 1), (left.view(-1, 3, 3), 2)):
        start = torch.arange(3).view([3 if d == size else 1 for d in range(3)]) * 75
        assert ((first >= start) & (first + 64 <= start + 75)).all()
        gap = first.diff(dim=size) - 64
        assert gap.min() == 0
        assert gap.max() == 22
        assert gap.float().mean().item() == pytest.approx(11, abs=0.2)  # the paper's mean gap
        assert (gap == 0).float().mean() < 0.02


def test_channels_of_a_tile_lie_beside_one_another() -> None:
    """The fringes of a lens would say where in the picture a tile was: channels are shifted by up to two pixels of 64."""
    encoder, modality = build(EncoderConfig("resnet10_x0.25", 128, 3), 0), ImageModality(128, 3, (0.5,) * 3, (0.2,) * 3)
    task = Jigsaw(encoder, modality, Jigsaw.Config(permutations=2))
    assert task.tile == 64
    side = task.view.size
    number = (
        torch.arange(side * side).view(1, 1, side, side).expand(20, 3, -1, -1).double()
    )  # each pixel says where it lies
    batch = Batch({}, torch.arange(20), 0, 0)
    top, left, _ = task.cells(batch)
    corner = task.shifted(batch, number, top, left)[..., 0, 0]
    for at, wanted in ((corner.long() // side, top), (corner.long() % side, left)):
        moved = at - wanted[..., None]
        assert (moved.min(), moved.max()) == (-2, 2)
        assert (moved[..., 0] != moved[..., 1]).float().mean() > 0.6
        assert at.min() >= 0
        assert at.max() <= side - 64


def test_neither_brightness_nor_contrast_is_left(batch: Batch) -> None:
    """A gradient of light over the picture would say where each tile was."""
    task = make("jigsaw", permutations=20)
    tiles, _ = task.drawn(batch)
    some = tiles[tiles.var((-2, -1), unbiased=False) > 0.9]
    assert len(some) > 100
    torch.testing.assert_close(tiles.mean((-2, -1)), torch.zeros(tiles.shape[:3]), rtol=0, atol=1e-4)
    slope = torch.randn(4, 9, 3, 8, 8)
    torch.testing.assert_close(standardised(3 * slope + 7), standardised(slope), rtol=1e-4, atol=1e-4)
    assert standardised(torch.full((1, 1, 4, 4), 0.7)).abs().max() < 1e-4


def test_the_answer_puts_the_picture_together_again(batch: Batch) -> None:
    task = make("jigsaw", permutations=50)
    tiles, y = task.drawn(batch)
    top, left, again = task.cells(batch)
    assert torch.equal(y, again)
    assert len(y.unique()) > 5
    whole = standardised(cut(task.modality.view(batch, task.view, stream=1), top, left, task.tile))
    order = task.permutations[y].argsort(1)
    restored = tiles.gather(1, order[..., None, None, None].expand_as(tiles))
    torch.testing.assert_close(restored, whole, rtol=0, atol=0)


def test_a_guess_is_right_more_often_where_permutations_share_cells(batch: Batch) -> None:
    """Of each pair of the permutations there are, by hand."""
    for count, expected in ((2, 0.5), (30, None)):
        task = make("jigsaw", permutations=count).eval()
        rows = task.permutations.tolist()
        shared = sum(a == b for one in rows for two in rows for a, b in zip(one, two, strict=True)) / (9 * count**2)
        assert task.answers(batch).guess == pytest.approx(shared)
        assert expected is None or shared == expected


def test_without_learning_it_is_at_chance(batch: Batch) -> None:
    task = make("jigsaw", permutations=30)
    for parameter in task.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert task(batch).loss.item() == pytest.approx(task.chance(len(batch))) == pytest.approx(math.log(30))


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="permutations' is 1; it must be 2 to 2000"):
        make("jigsaw", permutations=1)
    with pytest.raises(UserError, match=r"cell' is 0.5; it must be 1 or more"):
        make("jigsaw", cell=0.5)
    with pytest.raises(UserError, match="tile' is 7; it must be a multiple of the encoder's patch of 2"):
        make("jigsaw", "vit_micro", tile=7)
    with pytest.raises(UserError, match=r"view.size' follows from the tiles'; leave it out, and set pretext.tile"):
        make("jigsaw", view={"size": 20})
