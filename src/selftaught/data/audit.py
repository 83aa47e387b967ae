"""What a data set is like before any training: counts, bad files, duplicates, leaks, and which pretext tasks suit it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selftaught import rng
from selftaught.data.copies import LISTED, Leaks, class_counts, equal_groups, groups, leaks, named
from selftaught.data.images import ImageSource
from selftaught.data.similar import dhash, near_pairs, thumbnails
from selftaught.errors import UserError

_ROTATION_SAMPLES = 3000
_COLOUR_SAMPLES = 300
_COLOURFUL = (
    8.0  # mean difference between the largest and smallest channel, of 255; grey pictures saved as JPEG have 1 to 3
)
_ROTATION_FLOOR = 0.30  # four-way accuracy below which orientation cannot be told; chance is 0.25


@dataclass(frozen=True, kw_only=True)
class Audit(Leaks):
    """What `audit` found; `to_json` gives it as plain JSON values.

    samples, skipped_count, exact_extra (copies beyond the first of each group) and near_count (samples with a near
    duplicate that is not an exact one) count everything; the lists beside them name at most the first 100.
    classes: samples by class; unlabelled: samples whose label is unknown (all, where there are no labels).
    height, width: (smallest, median, largest) pixels as stored. flat: pictures of one even grey or colour.
    rotation_accuracy: how often a linear model tells unseen 16 x 16 thumbnails' four rotations apart (chance 0.25);
        None below 40 samples.
    coloured: share of pictures, of some of them, that are not grey.
    """

    samples: int
    channels: int
    classes: dict[str, int]
    unlabelled: int
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    sizes: int
    skipped_count: int
    skipped: list[tuple[str, str]]
    flat: int
    exact_extra: int
    exact: list[list[str]]
    near_count: int
    near: list[list[str]]
    rotation_accuracy: float | None
    coloured: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def audit(source: ImageSource, other: ImageSource | None = None) -> Audit:
    """Look at every picture of `source` once and, for leaks, of `other` (say, the training data of a test set).

    Exact duplicates have equal content hashes; for near ones see `similar.near_pairs`.
    """
    if other is not None and other.kind != source.kind:
        raise UserError(f"an audit of {source.kind} data cannot look for leaks from {other.kind} data")
    n = len(source)
    small, large = thumbnails(source, (8, 9), (16, 16))
    codes = dhash(small)
    i, j = near_pairs(codes, large)
    differ = source.hashes[i] != source.hashes[j]
    exact = equal_groups(source.hashes)
    near = groups(n, i[differ], j[differ])
    counts = class_counts(source)
    height, width = source.sizes[:, 0], source.sizes[:, 1]
    return Audit(
        samples=n,
        channels=source.channels,
        classes=counts,
        unlabelled=n - sum(counts.values()),
        height=(int(height.min()), int(np.median(height)), int(height.max())),
        width=(int(width.min()), int(np.median(width)), int(width.max())),
        sizes=len(np.unique(source.sizes, axis=0)),
        skipped_count=len(source.skipped),
        skipped=[(name, reason) for name, reason in source.skipped[:LISTED]],
        flat=int((large.max(axis=(1, 2)) - large.min(axis=(1, 2)) < 1).sum()),
        exact_extra=sum(len(group) - 1 for group in exact),
        exact=named(source, exact),
        near_count=len(np.unique(np.concatenate([i[differ], j[differ]]))),
        near=named(source, near),
        rotation_accuracy=rotation_accuracy(large),
        coloured=coloured(source),
        **({} if other is None else _leaks(source, other, codes, large)),
    )


def _leaks(source: ImageSource, other: ImageSource, codes: np.ndarray, large: np.ndarray) -> dict[str, Any]:
    n = len(source)
    small_there, large_there = thumbnails(other, (8, 9), (16, 16))
    i, j = near_pairs(np.concatenate([codes, dhash(small_there)]), np.concatenate([large, large_there]))
    across = (i < n) & (j >= n)
    return leaks(source, other, dict(zip(i[across][::-1].tolist(), (j[across][::-1] - n).tolist())))


def rotation_accuracy(grey: np.ndarray) -> float | None:
    """How often ridge regression tells which of 0, 90, 180, 270 degrees unseen square thumbnails were turned by.

    grey: [N, s, s]. Up to 3000 of them, half to fit and half to test; each half holds all four turns of its pictures.
    None below 40 pictures. A network sees more than this linear model: the figure is a lower bound.
    """
    if len(grey) < 40:
        return None
    chosen = grey[rng.permutation(len(grey), len(grey))[:_ROTATION_SAMPLES]].astype(np.float64)
    chosen -= chosen.mean(axis=(1, 2), keepdims=True)
    chosen /= chosen.std(axis=(1, 2), keepdims=True) + 1.0
    half = len(chosen) // 2
    fit_x, fit_y = _turned(chosen[:half])
    test_x, test_y = _turned(chosen[half:])
    gram = fit_x.T @ fit_x + len(fit_x) * 0.1 * np.eye(fit_x.shape[1])
    weights = np.linalg.solve(gram, fit_x.T @ (np.eye(4)[fit_y] - 0.25))
    return float(((test_x @ weights).argmax(axis=1) == test_y).mean())


def coloured(source: ImageSource) -> float:
    """Share of pictures whose channels differ, of up to 300 of them."""
    if source.channels < 3:
        return 0.0
    chosen = rng.permutation(len(source), len(source))[:_COLOUR_SAMPLES]
    found = 0
    for part in np.array_split(np.sort(chosen), max(1, len(chosen) // 16)):
        batch = source.fetch(part)
        x = batch["pixels"][:, :3].int()
        spread = (x.amax(1) - x.amin(1)).sum((1, 2)) / batch["size"].prod(
            1
        )  # nothing lies beyond a picture on its canvas
        found += int((spread >= _COLOURFUL).sum())
    return found / len(chosen)


def _turned(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.concatenate([np.rot90(grey, k, axes=(1, 2)).reshape(len(grey), -1) for k in range(4)])
    return x, np.repeat(np.arange(4), len(grey))


def offers(found: Audit) -> dict[str, tuple[bool, str]]:
    """Whether the data has what a pretext task may want of it (`Pretext.wants`), and what it has.

    variety: a few hundred different samples, to tell apart. patches: pictures large enough to hide parts of, and a
    hundred of them. upright: an upright side that can be seen. colour: colours, in half of the pictures.
    """
    side = min(found.height[1], found.width[1])
    unique = found.samples - found.exact_extra
    enough = unique >= 300
    many = f"{unique} different pictures" + ("" if enough else "; contrast needs a few hundred")
    wide = side >= 16
    patches = f"{side} px on the short side" + ("" if wide else "; patches to hide need 16 or more")
    turns = found.rotation_accuracy
    if turns is None:
        upright = (False, f"{found.samples} pictures are too few to tell whether they have an upright side")
    elif turns >= _ROTATION_FLOOR:
        upright = (True, f"pictures have an upright side: a linear model tells four rotations apart in {turns:.0%}")
    else:
        upright = (
            False,
            f"no upright side is visible: a linear model tells four rotations apart in {turns:.0%} (chance 25%)",
        )
    return {
        "variety": (enough, many),
        "patches": (
            wide and unique >= 100,
            patches if unique >= 100 else f"{unique} different pictures; 100 are needed",
        ),
        "upright": upright,
        "colour": (found.coloured >= 0.5, f"{found.coloured:.0%} of the pictures have colours"),
    }
