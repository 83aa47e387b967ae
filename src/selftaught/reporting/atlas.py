"""The atlas: a 2-D map of an embedding and a gallery of nearest neighbours, so that eyes can check the figures.

The map is t-SNE (van der Maaten & Hinton 2008) on the first 50 principal components of the L2-normalised features,
started from their PCA (Kobak & Berens 2019, "The art of using t-SNE": the start decides whether the global layout
means anything). The gallery's queries are drawn by the seed, never picked by hand.
"""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from selftaught import disk, rng
from selftaught.errors import UserError

TENSORS, NAMES = "atlas.safetensors", "atlas.json"
POINTS = 1500  # t-SNE of 1500 points takes seconds on two cores, and more points hide each other on a page
QUERIES, NEIGHBOURS = 12, 6
THUMB = 64  # the largest side of a stored thumbnail, in pixels
_COMPONENTS = 50


@dataclass(frozen=True)
class Atlas:
    """Up to 1500 samples of an embedding, laid out.

    xy: float32 [n, 2], the longest side of the map in [-1, 1]. thumbs: uint8 [n, c, h, w], sides at most 64.
    labels: int64 [n], -1 where unknown. names: [n]. classes: names of the labels.
    queries: int64 [q]; neighbours: int64 [q, k], most similar first, the query left out; similarity: their cosines.
    trust: the trustworthiness of the map at 10 neighbours (Venna & Kaski 2001), 1 is best; None below 25 samples.
    agreement, chance: the share of labelled samples' k nearest neighbours that have their class, and the share that
        random neighbours would have; None without labels.
    """

    xy: Float[np.ndarray, "n 2"]
    thumbs: UInt8[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, " n"]
    names: list[str]
    classes: list[str]
    queries: Int[np.ndarray, " q"]
    neighbours: Int[np.ndarray, "q k"]
    similarity: Float[np.ndarray, "q k"]
    trust: float | None
    agreement: float | None
    chance: float | None
    seed: int
    total: int

    def save(self, run: Path) -> None:
        """Write atlas.safetensors and atlas.json into the run folder, each atomically."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        temporary = run / f".{TENSORS}.{secrets.token_hex(4)}"
        try:
            save_file(tensors, temporary)
            temporary.replace(run / TENSORS)
        finally:
            temporary.unlink(missing_ok=True)
        words = {name: getattr(self, name) for name in _WORDS}
        disk.write_json(run / NAMES, words)


_ARRAYS = ("xy", "thumbs", "labels", "queries", "neighbours", "similarity")
_WORDS = ("names", "classes", "trust", "agreement", "chance", "seed", "total")


def load(run: Path) -> Atlas:
    """The atlas of a run folder.

    Raises: UserError where its two files are absent, broken, or do not belong together.
    """
    try:
        tensors = load_file(run / TENSORS)
        words = json.loads((run / NAMES).read_text(encoding="utf-8"))
        parts: dict[str, Any] = {k: tensors[k] for k in _ARRAYS} | {k: words[k] for k in _WORDS}
        found = Atlas(**parts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"the atlas in {run} cannot be read ({error}); make it again") from None
    n = len(found.xy)
    sizes = {len(found.thumbs), len(found.labels), len(found.names)}
    inside = all(a.size == 0 or (a.min() >= 0 and a.max() < n) for a in (found.queries, found.neighbours))
    if sizes != {n} or not inside or (n and int(found.labels.max()) >= len(found.classes)):
        raise UserError(f"{TENSORS} and {NAMES} in {run} do not belong together; make the atlas again")
    return found


def make_atlas(
    features: Float[np.ndarray, "n d"],
    thumbs: UInt8[np.ndarray, "n c h w"],
    names: list[str],
    labels: Int[np.ndarray, " n"] | None,
    classes: list[str],
    seed: int,
    of: int | None = None,
) -> Atlas:
    """Lay an embedding out on a map and find the nearest neighbours of a few samples.

    Above 1500 samples, 1500 are drawn by the seed and everything is computed on them. of: how many samples these were drawn
    from; None: they are all.

    Raises: UserError on fewer than 2 samples, features that are not finite, or lengths that differ.
    """
    total = len(features)
    if total < 2:
        raise UserError(f"an atlas of {total} samples shows nothing; give at least 2")
    if len(thumbs) != total or len(names) != total or (labels is not None and len(labels) != total):
        raise UserError(f"{total} features, {len(thumbs)} thumbnails, {len(names)} names; give one of each per sample")
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise UserError(f"{bad} of {total} feature vectors are not finite; the run diverged, lower --lr and run again")
    known = np.full(total, -1, np.int64) if labels is None else labels.astype(np.int64)
    if int(known.max()) >= len(classes):
        raise UserError(f"label {known.max()} has no name among {len(classes)} classes; give one name per class")
    kept = np.sort(rng.permutation(total, seed, 1)[:POINTS])
    unit = features[kept].astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    known = known[kept]
    xy, trust = _layout(unit, seed)
    order, cosine = _nearest(unit)
    queries = _by_class(known, seed) if (known >= 0).any() else _by_place(xy, seed)
    agreement, chance = _agreement(known, order)
    return Atlas(
        xy=xy.astype(np.float32),
        thumbs=_shrink(thumbs[kept]),
        labels=known,
        names=[names[i] for i in kept],
        classes=list(classes),
        queries=queries,
        neighbours=order[queries],
        similarity=cosine[queries].astype(np.float32),
        trust=trust,
        agreement=agreement,
        chance=chance,
        seed=seed,
        total=total if of is None else of,
    )


def _layout(unit: Float[np.ndarray, "n d"], seed: int) -> tuple[Float[np.ndarray, "n 2"], float | None]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, trustworthiness
    from threadpoolctl import threadpool_limits

    n, d = unit.shape
    if unit.std(axis=0).max() < 1e-9:  # a collapsed encoder: one point, and t-SNE would divide by zero
        return np.zeros((n, 2)), None
    reduced = PCA(min(_COMPONENTS, n, d), svd_solver="full").fit_transform(unit)
    if n < 10:
        xy = np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
    else:
        reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
        tsne = TSNE(2, perplexity=min(30.0, (n - 1) / 3), init="pca", random_state=seed % 2**32)
        with threadpool_limits(1):  # sums in one order, whatever the number of cores; and no spinning on few samples
            xy = tsne.fit_transform(reduced)
    xy = xy.astype(np.float64) - xy.mean(axis=0)
    # t-SNE means nothing by its axes: the longest one lies flat, which fits a page
    xy = xy @ np.linalg.svd(xy, full_matrices=False)[2].T
    middle = (xy.max(axis=0) + xy.min(axis=0)) / 2
    xy = (xy - middle) / max(np.ptp(xy, axis=0).max() / 2, 1e-12)
    return xy, float(trustworthiness(unit, xy, n_neighbors=10)) if n >= 25 else None


def _nearest(unit: Float[np.ndarray, "n d"]) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(unit) - 1)]
    return order, np.take_along_axis(cosine, order, axis=1)


def _by_class(labels: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " q"]:
    """Queries in turn over the classes (a seeded choice of classes where there are more than queries)."""
    shuffled = rng.permutation(len(labels), seed, 2)
    shuffled = shuffled[labels[shuffled] >= 0]
    present = np.unique(labels[shuffled])
    present = np.sort(present[rng.permutation(len(present), seed, 3)[:QUERIES]])
    members = [shuffled[labels[shuffled] == label] for label in present]
    turns = [m[i] for i in range(QUERIES) for m in members if i < len(m)]
    chosen = np.array(turns[:QUERIES], np.int64)
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _by_place(xy: Float[np.ndarray, "n 2"], seed: int) -> Int[np.ndarray, " q"]:
    """Queries spread over the map by farthest-point sampling (Gonzalez 1985) from a seeded start."""
    chosen = [int(rng.permutation(len(xy), seed, 2)[0])]
    distance = np.linalg.norm(xy - xy[chosen[0]], axis=1)
    while len(chosen) < min(QUERIES, len(xy)):
        distance[chosen[-1]] = -1.0  # never twice, even where all points coincide
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(xy - xy[chosen[-1]], axis=1))
    return np.array(chosen, np.int64)


def _agreement(labels: Int[np.ndarray, " n"], order: Int[np.ndarray, "n k"]) -> tuple[float | None, float | None]:
    known = np.flatnonzero(labels >= 0)
    pairs = labels[order[known]]
    if not (pairs >= 0).any() or len(known) < 2:
        return None, None
    same = (pairs == labels[known, None]) & (pairs >= 0)
    count = np.bincount(labels[known]).astype(np.float64)
    chance = float((count * (count - 1)).sum() / (len(known) * (len(known) - 1)))
    return float(same.sum() / (pairs >= 0).sum()), chance


def _shrink(thumbs: UInt8[np.ndarray, "n c h w"]) -> UInt8[np.ndarray, "n k i j"]:
    """Grey or RGB thumbnails with sides of at most 64 pixels; other channel counts show their first channels."""
    thumbs = thumbs[:, :3] if thumbs.shape[1] >= 3 else thumbs[:, :1]
    height, width = thumbs.shape[2:]
    if max(height, width) <= THUMB:
        return thumbs
    scale = THUMB / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [np.asarray(picture(thumb).resize(size, Image.Resampling.BOX)) for thumb in thumbs]
    stacked = np.stack(small)
    return stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)


def picture(thumb: UInt8[np.ndarray, "c h w"]) -> Image.Image:
    """A thumbnail as a PIL image, grey for one channel."""
    if thumb.shape[0] == 1:
        return Image.fromarray(thumb[0])
    return Image.fromarray(np.ascontiguousarray(thumb.transpose(1, 2, 0)))
