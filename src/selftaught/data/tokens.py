"""Token ids of documents: made once per corpus and tokenizer, memory-mapped, read whole or in pieces."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selftaught.data.cache import discard, writing
from selftaught.data.ragged import within
from selftaught.data.source import Picked, Skipped, Source
from selftaught.data.texts import TextSource
from selftaught.modality.text.tokenizer import Tokenizer

FORMAT = 1
_AT_ONCE = 256  # documents given to the tokenizer together, and bytes of them: it takes a hundred for each token
_BYTES = 2**21
Progress = Callable[[int, int], None]


class TokenSource(Source):
    """Sequences of token ids. fetch gives "ids" int64 [B, L] (0 beyond a row's end), "length" int64 [B], "starts" bool
    [B, L], which tokens begin a word, "document" int64 [B], of which document each sequence is a piece, and "edges" bool
    [B, 2], whether it begins and ends where that does.

    bounds: int64 [N, 2], where each sequence lies in `ids` and `starts`. limit: tokens of a sequence that are fetched.
    document: int64 [N]; None: each sequence is a document. edges: bool [N, 2]; None: each is a whole one. lengths: int64 [N],
    all tokens of each.
    """

    kind = "text"

    def __init__(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        bounds: np.ndarray,
        limit: int,
        *,
        names: Sequence[str],
        hashes: np.ndarray,
        labels: np.ndarray | None,
        classes: list[str],
        skipped: list[Skipped],
        document: np.ndarray | None = None,
        edges: np.ndarray | None = None,
    ) -> None:
        self._ids, self._starts, self._bounds, self._limit = ids, starts, bounds, limit
        self._document = np.arange(len(bounds)) if document is None else document
        self._edges = np.ones((len(bounds), 2), bool) if edges is None else edges
        self.names, self.hashes, self.labels, self.classes, self.skipped = names, hashes, labels, classes, skipped
        self.lengths = bounds[:, 1] - bounds[:, 0]

    def __len__(self) -> int:
        return len(self._bounds)

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        bounds = self._bounds[index]
        length = np.minimum(bounds[:, 1] - bounds[:, 0], self._limit)
        width = int(length.max(initial=0))
        ids = np.zeros((len(index), width), np.int64)
        starts = np.zeros((len(index), width), bool)
        for row, (begin, n) in enumerate(zip(bounds[:, 0].tolist(), length.tolist())):
            ids[row, :n] = self._ids[begin : begin + n]
            starts[row, :n] = self._starts[begin : begin + n]
        edges = self._edges[index]
        edges[:, 1] &= bounds[:, 1] - bounds[:, 0] == length
        return {
            "ids": torch.from_numpy(ids),
            "length": torch.from_numpy(length.astype(np.int64)),
            "starts": torch.from_numpy(starts),
            "document": torch.from_numpy(self._document[index]),
            "edges": torch.from_numpy(edges),
        }

    def subset(self, index: np.ndarray) -> "TokenSource":
        index = np.arange(len(self))[index]
        return self._of(index, self._bounds[index], Picked(self.names, index), self._edges[index])

    def cut(self, index: np.ndarray, overlap: int = 0) -> tuple["TokenSource", np.ndarray]:
        """The documents at `index` in consecutive pieces of at most `limit` tokens, all of a document alike long.

        overlap: tokens of the next piece that a piece holds besides. Returns the pieces, in order, and int64 [pieces],
        which entry of `index` each is of. A piece has its document's hash and label.
        """
        lengths = np.maximum(self.lengths[index] - overlap, 0)
        counts = np.maximum(1, -(-lengths // self._limit))
        owner = np.repeat(np.arange(len(index)), counts)
        nth = within(counts)
        ends = [nth * lengths[owner] // counts[owner], (nth + 1) * lengths[owner] // counts[owner]]
        bounds = self._bounds[index][owner, :1] + np.stack(ends, 1) + np.array([0, overlap])
        bounds = np.minimum(bounds, self._bounds[index][owner, 1:])
        names, edges = _Pieces(self.names, index[owner], nth), self._outer(index[owner], nth, counts[owner])
        return self._of(index[owner], bounds, names, edges, self._limit + overlap), owner

    def counts(self, index: np.ndarray, vocabulary: int) -> np.ndarray:
        """How often each token id occurs in the sequences at `index`, int64 [vocabulary]."""
        found = np.zeros(vocabulary, np.int64)
        for begin, stop in self._bounds[index].tolist():
            found += np.bincount(self._ids[begin:stop], minlength=vocabulary)
        return found

    def windows(self, index: np.ndarray) -> tuple["TokenSource", np.ndarray]:
        """The documents at `index` in overlapping pieces, from which windows of `limit` + 1 tokens are drawn.

        Each place where such a window can begin is in one piece, in which at most `limit` windows begin; so a piece is at
        most 2 * limit tokens long. Returns the pieces and int64 [pieces], which entry of `index` each is of.
        """
        begins = np.maximum(1, self.lengths[index] - self._limit)
        counts = -(-begins // self._limit)
        owner = np.repeat(np.arange(len(index)), counts)
        nth = within(counts)
        first, last = nth * begins[owner] // counts[owner], (nth + 1) * begins[owner] // counts[owner]
        stops = np.minimum(last + self._limit, self.lengths[index][owner])
        bounds = self._bounds[index][owner, :1] + np.stack([first, stops], 1)
        names, edges = _Pieces(self.names, index[owner], nth), self._outer(index[owner], nth, counts[owner])
        return self._of(index[owner], bounds, names, edges, 2 * self._limit), owner

    def _outer(self, rows: np.ndarray, nth: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Edges of pieces: the first of its sequence begins, and the last ends, where that does."""
        return self._edges[rows] & np.stack([nth == 0, nth == counts - 1], 1)

    def _of(
        self, rows: np.ndarray, bounds: np.ndarray, names: Sequence[str], edges: np.ndarray, limit: int | None = None
    ) -> "TokenSource":
        return TokenSource(
            self._ids,
            self._starts,
            bounds,
            limit or self._limit,
            names=names,
            hashes=self.hashes[rows],
            labels=None if self.labels is None else self.labels[rows],
            classes=self.classes,
            skipped=self.skipped,
            document=self._document[rows],
            edges=edges,
        )


class _Pieces(Sequence[str]):
    """Names of pieces, made when asked for."""

    def __init__(self, names: Sequence[str], rows: np.ndarray, nth: np.ndarray) -> None:
        self._names, self._rows, self._nth = names, rows, nth

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return _Pieces(self._names, self._rows[index], self._nth[index])
        return f"{self._names[self._rows[index]]} piece {self._nth[index] + 1}"


def tokenized(
    source: TextSource, tokenizer: Tokenizer, limit: int, cache: Path | None, progress: Progress
) -> TokenSource:
    """The documents as token ids; from the prepared folder where the same was made before.

    limit: tokens of a sequence that are fetched, without special ones. cache: None keeps the ids in memory.
    """
    digest = hashlib.blake2b(tokenizer.dump().encode(), digest_size=12).hexdigest()
    words = "" if tokenizer.segmenter is None else f"-{tokenizer.segmenter.key}"
    key = f"tokens{FORMAT}-{source.fingerprint}-{digest}{words}"
    found = None if cache is None else _open(cache / key, len(source))
    if found is None:
        ids, starts, lengths = _encode(source, tokenizer, progress)
        if cache is None:
            found = ids, starts, lengths
        else:
            with writing(cache) as (folder, commit):
                for name, array in (("ids", ids), ("starts", starts), ("lengths", lengths)):
                    np.save(folder / f"{name}.npy", array)
                (folder / "meta.json").write_text(json.dumps({"format": FORMAT}))
                final = commit(key)
            found = _open(final, len(source))
            assert found is not None, final  # it has just been written
    ids, starts, lengths = found
    stops = lengths.cumsum()
    return TokenSource(
        ids,
        starts,
        np.stack([stops - lengths, stops], 1),
        limit,
        names=source.names,
        hashes=source.hashes,
        labels=source.labels,
        classes=source.classes,
        skipped=source.skipped,
    )


def _encode(source: TextSource, tokenizer: Tokenizer, progress: Progress) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kind = np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.int32
    ids, starts, lengths = [], [], []
    total = np.concatenate([[0], source.sizes.cumsum()])
    begin = 0
    while begin < len(source):
        full = int(np.searchsorted(total, total[begin] + _BYTES, side="right")) - 1
        part = np.arange(begin, min(len(source), begin + _AT_ONCE, max(full, begin + 1)))
        begin += len(part)
        for found in tokenizer.encode(list(source.texts(part))):
            ids.append(found.ids.astype(kind))
            starts.append(found.starts)
            lengths.append(len(found.ids))
        progress(begin, len(source))
    return np.concatenate(ids), np.concatenate(starts), np.array(lengths, np.int64)


def _open(folder: Path, documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    if not folder.is_dir():
        return None
    try:
        ids, starts = (np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in ("ids", "starts"))
        lengths = np.load(folder / "lengths.npy", allow_pickle=False)
        if len(lengths) != documents or not len(ids) == len(starts) == lengths.sum():
            raise ValueError("incomplete")
        return np.asarray(ids), np.asarray(starts), lengths
    except (OSError, ValueError, EOFError):
        discard(folder)
        return None
