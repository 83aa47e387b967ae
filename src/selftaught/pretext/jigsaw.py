"""Jigsaw puzzles: nine tiles of a picture are shuffled; by which of the known permutations?

Noroozi, Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles".
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from selftaught import rng
from selftaught.batch import Answers, Batch, Seen, Shown
from selftaught.encoders import Encoder
from selftaught.errors import UserError
from selftaught.modality.base import Modality
from selftaught.modality.image.tiles import cut, standardised
from selftaught.pretext.tiles import Tiles
from selftaught.pretext.views import zero_or_more

_PLACES = 9
_POOL, _MOST = 20_000, 2000  # permutations to choose from; the most that are chosen, which takes two seconds
_SEED = 95  # of the pool, the same in every run
_DRAWS, _FRINGES = 95, 99  # streams of a batch's draws


def far_apart(count: int, places: int = _PLACES) -> Int[Tensor, "count places"]:
    """Permutations that differ in as many places as can be had: algorithm 1 of the paper on a random pool.

    Each next one has the largest smallest distance to those before it, and of these the largest mean distance.
    """
    pool = rng.bits(rng.fold(_SEED, places), torch.arange(_POOL), places).argsort(1).to(torch.uint8)
    pool = torch.unique(pool, dim=0)  # sorted: the order does not depend on the draw
    least, total = torch.full((len(pool),), places + 1), torch.zeros(len(pool), dtype=torch.long)
    chosen = [0]
    for _ in range(count - 1):
        distance = (pool != pool[chosen[-1]]).sum(1)
        least = torch.minimum(least, distance)
        total += distance
        chosen.append(int((least * (places * count + 1) + total).argmax()))
    return pool[chosen].long()


class Jigsaw(Tiles):
    """The encoder on each tile, and a classifier of the permutation on their features side by side.

    A tile lies anywhere in its cell, so that the edges of neighbours do not continue each other, and has its own mean and
    variance, so that neither do its colours: otherwise the puzzle is solved without looking at what is in the picture. Nine
    tiles of half the size cost 2.25 of the encoder's pictures.
    """

    @dataclass(frozen=True)
    class Config(Tiles.Config):
        """permutations: how many are told apart (paper: 1000). cell: side of a cell beside a tile's; the paper's is 75 to 64.
        greyscale: share of pictures in grey, and fringe: the largest shift of a colour channel of a tile each way, of its side,
            both against the colour fringes of lenses (section 4.2; 2 of 64 pixels).
        """

        permutations: int = 1000
        cell: float = 75 / 64
        greyscale: float = 0.3
        fringe: float = 2 / 64

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 2 <= self.permutations <= _MOST:
                raise UserError(f"setting 'pretext.permutations' is {self.permutations}; it must be 2 to {_MOST}")
            zero_or_more(self, "fringe")
            if not self.cell >= 1:
                raise UserError(f"setting 'pretext.cell' is {self.cell}; it must be 1 or more")

    paper = "Noroozi & Favaro 2016, arXiv:1603.09246"
    small_machine: ClassVar[dict[str, dict[str, Any]]] = {"image": {"permutations": 100}}

    def __init__(self, encoder: Encoder, modality: Modality, config: Config) -> None:
        super().__init__(encoder, modality, config, _PLACES, config.permutations)
        self.permutations: Tensor
        self.register_buffer("permutations", far_apart(config.permutations))

    def light_view(self) -> Any:
        return replace(self.modality.light_view(), greyscale=self.config.greyscale)

    def extent(self) -> int:
        self.cell = round(self.tile * self.config.cell)
        return 3 * self.cell

    def cells(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Top and left [B, 9] of the tile of each cell in reading order, and the permutation's number [B]."""
        u = batch.uniform(_DRAWS, 1 + 2 * _PLACES)
        shift = (u[:, 1:] * (self.cell - self.tile + 1)).long()
        place = torch.arange(_PLACES, device=u.device)
        top, left = place // 3 * self.cell + shift[:, :_PLACES], place % 3 * self.cell + shift[:, _PLACES:]
        return top, left, (u[:, 0] * self.classes).long()

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tiles [B, 9, C, tile, tile]: at place k the tile of cell permutation[k]."""
        x = self.modality.view(batch, self.view, stream=1)
        top, left, y = self.cells(batch)
        order = self.permutations[y]
        return standardised(self.shifted(batch, x, top.gather(1, order), left.gather(1, order))), y

    def shifted(self, batch: Batch, x: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Tiles, each channel of which lies a little beside the others."""
        most, channels = round(self.tile * self.config.fringe), x.shape[1]
        if not most or channels == 1:
            return cut(x, top, left, self.tile)
        u = batch.uniform(_FRINGES, 2 * _PLACES * channels).view(len(x), channels, 2, _PLACES)
        place = torch.stack([top, left], 1)[:, None] + (u * (2 * most + 1)).long() - most
        place = place.clamp(0, x.shape[-1] - self.tile)
        each = [cut(x[:, c : c + 1], place[:, c, 0], place[:, c, 1], self.tile) for c in range(channels)]
        return torch.cat(each, 2)

    def answers(self, batch: Batch) -> Answers:
        """Of each tile its cell, and the cell it has in the permutation that was said."""
        tiles, y = self.drawn(batch)
        right, said = self.permutations[y], self.permutations[self.logits(tiles).argmax(1)]
        names = tuple(f"cell {k + 1}" for k in range(_PLACES))
        guess = (self.permutations[:, None] == self.permutations).float().mean().item()  # few of them share cells
        return Answers(names, right.flatten(), said.flatten(), guess)

    def show(self, batch: Batch) -> Shown:
        tiles, y = self.drawn(batch)
        answers = tuple("cells " + " ".join(map(str, order)) for order in (self.permutations[y] + 1).tolist())
        return Shown(tuple(Seen(f"place {k + 1}", tiles[:, k]) for k in range(_PLACES)), {}, answers)
