"""Near duplicates among many pictures: perceptual hashes, and a search that never compares all pairs."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from selftaught.data.copies import bucket_pairs
from selftaught.data.images import ImageSource

MAX_DISTANCE = 3  # bits of 64 in which near duplicates may differ
MIN_CORRELATION = 0.98  # between their 16 x 16 thumbnails: the hash alone confuses plain pictures (digits, textures)
MIN_CONTRAST = 4.0  # standard deviation in grey levels below which a thumbnail says nothing
_BANDS = 4  # MAX_DISTANCE + 1: two codes that differ in 3 bits agree in one of four bands (pigeonhole)
_WINDOW = 1024
_COMPARED = 2**16  # pairs of thumbnails held at a time
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
_PIXELS = 2**22  # canvas pixels handled at a time


def area_matrix(length: Tensor, n: int, canvas: int) -> Float[Tensor, "b n canvas"]:
    """Weights that average `length` [B] pixels (the first of `canvas`) into n cells of equal width."""
    pixel = torch.arange(canvas, dtype=torch.float32)
    width = length[:, None, None].float() / n
    start = torch.arange(n)[None, :, None] * width
    overlap = torch.minimum(pixel + 1, start + width) - torch.maximum(pixel, start)
    return overlap.clamp(min=0) / width


def thumbnails(source: ImageSource, *shapes: tuple[int, int]) -> list[np.ndarray]:
    """Grey float32 [N, h, w] of 0..255 for each wanted (h, w), by area averaging of the whole picture."""
    out = [np.empty((len(source), *shape), np.float32) for shape in shapes]
    for index in _batches(source):
        batch = source.fetch(index)
        x = batch["pixels"].float()
        grey = x[:, 0] if x.shape[1] == 1 else torch.einsum("bchw,c->bhw", x, torch.tensor(_GREY))
        for result, (h, w) in zip(out, shapes):
            rows = area_matrix(batch["size"][:, 0], h, grey.shape[1])
            columns = area_matrix(batch["size"][:, 1], w, grey.shape[2])
            result[index] = (rows @ grey @ columns.mT).numpy()
    return out


def _batches(source: ImageSource) -> Iterator[np.ndarray]:
    """All positions, in groups of similar height whose canvas stays small."""
    order = np.lexsort((source.sizes[:, 1], source.sizes[:, 0])) if len(np.unique(source.sizes, axis=0)) > 1 else None
    order = np.arange(len(source)) if order is None else order
    start = 0
    while start < len(order):
        n = 1024
        while n > 1 and np.prod(source.sizes[order[start : start + n]].max(axis=0).astype(np.int64)) * n > _PIXELS:
            n //= 2
        yield order[start : start + n]
        start += n


def dhash(grey: np.ndarray) -> np.ndarray:
    """64-bit difference hash uint64 [N] of grey thumbnails [N, 8, 9]: is each cell's right neighbour brighter?"""
    # By half a grey level: the averages of an even colour differ by rounding, another way in every size of a picture.
    bits = (grey[:, :, 1:] > grey[:, :, :-1] + 0.5).reshape(len(grey), 64)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def near_pairs(codes: np.ndarray, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j), i < j, of near duplicates, int64 each, in order.

    codes: uint64 [N] from dhash; grey: other thumbnails [N, h, w] of the same pictures. A pair is near where its codes
    differ in at most MAX_DISTANCE bits and its thumbnails correlate with at least MIN_CORRELATION. Pictures without
    contrast have no pair. Codes are grouped by each of four 16-bit bands: only pictures that share one are compared. Of more
    than 1025 that do (even margins alone give a band), each is compared with the next 1024 by their whole codes, so that
    a large set takes no quadratic time.
    """
    flat = grey.reshape(len(grey), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    useful = np.flatnonzero(flat.std(axis=1) >= MIN_CONTRAST)
    flat[useful] /= np.linalg.norm(flat[useful], axis=1, keepdims=True)
    found = [np.empty((2, 0), np.int64)]
    for band in range(_BANDS):
        # The band as the highest bits, the next lower ones behind it: in one of the four turns what differs comes last.
        turned = codes << np.uint64(48 - 16 * band) | codes >> np.uint64(16 + 16 * band)
        order = useful[np.argsort(turned[useful], kind="stable")]
        bounds = np.flatnonzero(np.diff(turned[order] >> np.uint64(48))) + 1
        for left, right in bucket_pairs(np.concatenate([[0], bounds, [len(order)]]), _WINDOW):
            i, j = order[left], order[right]
            close = np.flatnonzero(np.bitwise_count(codes[i] ^ codes[j]) <= MAX_DISTANCE)
            for part in np.split(close, range(_COMPARED, len(close), _COMPARED)):
                alike = np.einsum("nd,nd->n", flat[i[part]], flat[j[part]]) >= MIN_CORRELATION
                found.append(np.stack([i[part], j[part]])[:, alike])
    unique = np.unique(np.sort(np.concatenate(found, axis=1), axis=0), axis=1)
    return unique[0], unique[1]
