"""Masks of pictures: as many patches in every row, squares and blocks where they may be, functions of their draws."""

import numpy as np
import pytest
import torch

from selftaught import rng
from selftaught.errors import UserError
from selftaught.modality.image.masks import block_side, cell_masking, cell_side, multi_block, placed


def draws(rows: int, n: int, key: int = 1) -> torch.Tensor:
    return rng.uniform(key, torch.arange(rows), n)


@pytest.mark.parametrize(
    ("grid", "side"), [((14, 14), 2), ((12, 12), 2), ((8, 8), 1), ((7, 7), 1), ((13, 13), 1), ((28, 28), 4)]
)
def test_squares_are_as_large_as_the_papers(grid: tuple[int, int], side: int) -> None:
    """32 px of 192 and of 224, with patches of 16; elsewhere the nearest that tiles the grid."""
    assert cell_side(grid) == side


def test_a_square_that_does_not_tile_is_refused() -> None:
    assert cell_side((14, 14), 7) == 7
    for block in (0, 3, 14):
        with pytest.raises(UserError, match=r"it must be one of 1, 2, 7"):
            cell_side((14, 14), block)
    with pytest.raises(UserError, match="one patch"):
        cell_side((1, 1))


@pytest.mark.parametrize(("side", "grid"), [(1, (8, 8)), (2, (12, 12)), (2, (4, 8))])
@pytest.mark.parametrize("mask", [0.01, 0.6, 0.99])
def test_squares_are_hidden_whole_and_as_many_in_every_row(side: int, grid: tuple[int, int], mask: float) -> None:
    cells = grid[0] * grid[1] // side**2
    noise = draws(50, cells)
    hidden = cell_masking(noise, mask, side, grid)
    assert hidden.dtype == torch.bool
    count = min(int(np.ceil(cells * mask)), cells - 1)  # the authors' generator rounds up
    for row in range(50):
        least = set(noise[row].argsort()[:count].tolist())
        for i in range(grid[0]):
            for j in range(grid[1]):
                cell = i // side * (grid[1] // side) + j // side
                assert hidden[row, i * grid[1] + j].item() == (cell in least)
    assert len({row.numpy().tobytes() for row in hidden}) > 1


def test_a_block_has_its_share_and_aspect() -> None:
    """The authors' arithmetic: whole patches, rounded sides, both below the grid's."""
    assert block_side(0.15, 1.0, (14, 14)) == (5, 5)  # 29 patches
    assert block_side(0.2, 1.5, (14, 14)) == (8, 5)  # 39 patches, higher than wide
    assert block_side(0.2, 0.75, (14, 14)) == (5, 7)
    assert block_side(1.0, 1.0, (14, 14)) == (13, 13)
    assert block_side(0.001, 1.0, (4, 4)) == (1, 1)


def test_blocks_lie_in_the_grid_at_uniform_places() -> None:
    grid, side = (5, 6), (2, 3)
    at = placed(draws(4000, 2), side, grid)
    rows, columns = at // grid[1], at % grid[1]
    assert (rows.amax(1) - rows.amin(1) == 1).all()
    assert (columns.amax(1) - columns.amin(1) == 2).all()
    assert all(len(set(row.tolist())) == 6 for row in at[:50])
    counts = torch.bincount(at[:, 0], minlength=30).view(grid)
    assert (counts[:4, :4] > 0).all()
    assert counts[4:].sum() == counts[:, 4:].sum() == 0
    expected = 4000 / 16
    assert ((counts[:4, :4] - expected) ** 2 / expected).sum() < 38  # 15 degrees of freedom, a fixed draw


def test_the_context_is_its_block_without_the_targets() -> None:
    grid, u = (8, 8), draws(40, 10)
    seen, covered, at = multi_block(u, (7, 7), (3, 4), grid)
    assert at.shape == (40, 4, 12)
    for row in range(40):
        targets = set(at[row].flatten().tolist())
        block = set(placed(u[row : row + 1, :2], (7, 7), grid)[0].tolist())
        assert set(covered[row].nonzero().flatten().tolist()) == targets
        assert set(seen[row].nonzero().flatten().tolist()) == block - targets
        for k in range(4):
            own = placed(u[row : row + 1, 2 * k + 2 : 2 * k + 4], (3, 4), grid)
            assert torch.equal(at[row, k], own[0])
