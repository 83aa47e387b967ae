"""Near duplicates among many texts: MinHash sketches, a search that never compares all pairs, and a true comparison.

Broder 1997, "On the resemblance and containment of documents": the share of shingles that two texts have in common is
the probability that the smallest hash of their shingles is the same one. Bands of such minima find candidates (Leskovec
et al., "Mining of Massive Datasets", section 3.4); each candidate is then compared shingle by shingle.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, UInt32, UInt64
from scipy.sparse import csr_array

from selftaught import rng
from selftaught.data.copies import bucket_pairs, parts
from selftaught.data.texts import TextSource

SHINGLE = 5
"""Units of a shingle. A letter is one unit, a Chinese character or another of the wide scripts two: it says about as much."""
HEAD = 2**14
"""Characters of a text that are compared, from its start: nearly all shingles of a language are in a text of a million."""
MIN_JACCARD = 0.8  # shared shingles of all different shingles of two texts that are near duplicates
_WIDE = 0x2E80  # the first code of the Chinese, Japanese and Korean blocks
_BANDS, _ROWS = (
    24,
    5,
)  # a pair at 0.8 shares one of the bands with probability 1 - (1 - 0.8^5)^24 = 0.9999, at 0.3 with 0.06
_WINDOW = 8  # texts of one bucket that each is compared with: many of one template take no quadratic time
_AT_ONCE = 2**18  # characters sketched at a time: what the cache of a core holds
_TEXTS, _PAIRS, _COMPARED = 32, 2**14, 2**22  # first texts, pairs, and bytes of text compared at a time
_MULTIPLIERS = np.array([rng.fold(i, 0x73686E) | 1 for i in range(SHINGLE)], np.uint64)
_PERMUTED = np.array([[rng.fold(i, 0x6D696E) | 1, rng.fold(i, 0x616464)] for i in range(_BANDS * _ROWS)], np.uint64)
Pairs = tuple[np.ndarray, np.ndarray]


def normalised(text: str) -> str:
    """Text as it is compared: its head, compatibility forms made one (NFKC), small letters, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text[:HEAD]).lower().split())


def shingles(texts: Sequence[str]) -> tuple[UInt64[np.ndarray, " total"], Int[np.ndarray, " n"]]:
    """Hashes of the shingles of texts one after the other, repeated ones too, and how many each text has (at least 1)."""
    plain = [normalised(text).ljust(SHINGLE, "\0") for text in texts]
    codes = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), np.uint32)
    width = 1 + (codes >= _WIDE)
    stops = np.cumsum(width)[np.cumsum([len(text) for text in plain]) - 1]
    units = np.repeat(codes, width).astype(np.uint64)
    value = np.zeros(len(units) - SHINGLE + 1, np.uint64)
    for k, factor in enumerate(_MULTIPLIERS):
        value += units[k : k + len(value)] * factor
    across = (stops[:-1, None] - np.arange(1, SHINGLE)).ravel()  # those that begin in one text and end in the next
    return _mixed(np.delete(value, across)), np.diff(stops, prepend=0) - SHINGLE + 1


def _mixed(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value ^= value >> np.uint64(shift)
        value *= np.uint64(factor)
    value ^= value >> np.uint64(31)
    return value


def sketches(texts: Iterable[str], progress: Callable[[int], None]) -> UInt64[np.ndarray, "n bands"]:
    """What is the same of near duplicates in at least one band, almost surely; progress: is told the texts done."""
    parts, done = [np.empty((0, _BANDS), np.uint64)], 0
    for batch in _batched(texts):
        value, counts = shingles(batch)
        minima = _minima((value >> np.uint64(32)).astype(np.uint32), counts).reshape(_BANDS, _ROWS, -1)
        keys = np.zeros((_BANDS, len(batch)), np.uint64)
        for row in range(_ROWS):
            keys = _mixed(keys * np.uint64(rng.fold(row) | 1) + minima[:, row])
        parts.append(keys.T)
        done += len(batch)
        progress(done)
    return np.concatenate(parts)


def _minima(value: UInt32[np.ndarray, " total"], counts: np.ndarray) -> UInt32[np.ndarray, "hashes n"]:
    """The smallest of the hashes a h + b mod 2^32 of each text's shingles, for each (a, b)."""
    starts = np.cumsum(counts) - counts
    out, buffer = np.empty((len(_PERMUTED), len(counts)), np.uint32), np.empty_like(value)
    for row, (a, b) in zip(out, _PERMUTED.astype(np.uint32)):
        np.multiply(value, a, out=buffer)
        buffer += b
        np.minimum.reduceat(buffer, starts, out=row)
    return out


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text[:HEAD])
        size += len(batch[-1])
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def near_within(source: TextSource, index: np.ndarray, keys: UInt64[np.ndarray, "n bands"]) -> Pairs:
    """Pairs (i, j), i < j, of near duplicates among the positions `index` [n], which ascend: enough to connect each group.

    keys: sketches of the texts at `index`. Of more than 9 texts that share a band, each is compared with the next 8 there,
    and no two that are connected already are compared: a crowd from one template takes no quadratic time.
    """
    n = len(index)
    tried, found, part = np.empty(0, np.int64), np.empty((2, 0), np.int64), np.arange(n)
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(band[order])) + 1, [n]])
        for left, right in bucket_pairs(bounds, _WINDOW):
            left, right = order[left], order[right]
            apart = part[left] != part[right]
            left, right, tried = _untried(left[apart], right[apart], n, tried)
            near = jaccard(source, index[left], source, index[right]) >= MIN_JACCARD
            found = np.concatenate([found, np.stack([left[near], right[near]])], axis=1)
            part = parts(n, *found)
    return index[found[0]], index[found[1]]


def near_between(
    source: TextSource,
    index: np.ndarray,
    keys: UInt64[np.ndarray, "n bands"],
    other: TextSource,
    there: np.ndarray,
    keys_there: UInt64[np.ndarray, "m bands"],
) -> dict[int, int]:
    """For those positions in `index` [n] of `source` that have a near duplicate among `there` [m] of `other`: where one is.

    Of more than 8 texts of `other` that share a band with a text, it is compared with the first 8 there.
    """
    tried, found = np.empty(0, np.int64), np.full(len(index), -1)
    for band, band_there in zip(keys.T, keys_there.T):
        open_still = np.flatnonzero(found < 0)
        asked = open_still[np.argsort(band[open_still], kind="stable")]
        order = np.argsort(band_there, kind="stable")
        first, stop = (np.searchsorted(band_there[order], band[asked], side=s) for s in ("left", "right"))
        count = np.minimum(stop - first, _WINDOW)
        left = np.repeat(asked, count)
        right = order[np.arange(len(left)) + np.repeat(first - np.cumsum(count) + count, count)]
        left, right, tried = _untried(left, right, len(there), tried)
        near = jaccard(source, index[left], other, there[right]) >= MIN_JACCARD
        found[left[near][::-1]] = there[right[near][::-1]]  # of several the first
    return {int(index[k]): int(found[k]) for k in np.flatnonzero(found >= 0)}


def _untried(
    left: np.ndarray, right: np.ndarray, n: int, tried: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs whose code left * n + right is not among the `tried`, which are in order; and all codes, in order."""
    code = left * n + right
    new = np.append(tried, -1)[np.searchsorted(tried, code)] != code
    return left[new], right[new], np.sort(np.concatenate([tried, code[new]]))


def jaccard(source: TextSource, i: np.ndarray, other: TextSource, j: np.ndarray) -> Float[np.ndarray, " n"]:
    """Shared shingles of all different shingles of texts i of `source` and j of `other`, pair by pair.

    Fast where pairs of the same and of similar texts follow each other, as they do in buckets.
    """
    out = np.empty(len(i))
    new = np.diff(i, prepend=-1) != 0
    read, read_there = (np.minimum(sizes, 4 * HEAD) for sizes in (source.sizes[i], other.sizes[j]))  # bytes, at most
    texts, size = np.cumsum(new), np.cumsum(read_there + new * read)
    start = 0
    while start < len(i):
        few = np.searchsorted(texts, texts[start] + _TEXTS - 1, side="right")
        small = np.searchsorted(size, size[start] + _COMPARED, side="right")
        stop = max(start + 1, min(start + _PAIRS, int(few), int(small)))
        here, row = np.unique(i[start:stop], return_inverse=True)
        there, column = np.unique(j[start:stop], return_inverse=True)
        value, counts = shingles([*source.texts(here, HEAD), *other.texts(there, HEAD)])
        which = pa.array(value).dictionary_encode().indices.to_numpy()  # by a hash table: np.unique sorts
        has = csr_array((np.ones(len(value), np.int32), which, np.concatenate([[0], np.cumsum(counts)])))
        has.sum_duplicates()
        has.data[:] = 1
        different = np.diff(has.indptr)
        both = (has[: len(here)] @ has[len(here) :].T).toarray()[row, column]
        out[start:stop] = both / (different[row] + different[len(here) + column] - both)
        start = stop
    return out
