"""Pictures as a Source: equal-sized or mixed, in memory, memory-mapped or decoded when asked for."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from selftaught.data.loaders import Loader
from selftaught.data.source import Picked, Skipped, Source
from selftaught.errors import BadSample, RunStopped

Pictures = tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, "b 2"]]


def cpu_threads() -> int:
    """Threads that decode at once."""
    return min(32, os.cpu_count() or 1)


def on_canvas(pictures: Sequence[np.ndarray], channels: int) -> Pictures:
    """Pictures [c, h, w] in the upper left corners of zeros [B, channels, H, W], and sizes; greys spread to RGB.

    A pixel's channels lie side by side in memory, as decoders give them and resizing is fastest.
    """
    size = np.array([picture.shape[1:] for picture in pictures], dtype=np.int64).reshape(-1, 2)
    height, width = size.max(axis=0, initial=0)
    canvas = np.empty((len(pictures), height, width, channels), np.uint8).transpose(0, 3, 1, 2)
    for row, picture, (h, w) in zip(canvas, pictures, size.tolist()):
        row[:, :h, :w] = picture
        row[:, h:] = 0
        row[:, :h, w:] = 0
    return torch.from_numpy(canvas), torch.from_numpy(size)


class PixelStore(ABC):
    """Where pixels are kept. `rows` are the source's samples as positions in the store; `index` picks among them."""

    @abstractmethod
    def gather(self, rows: np.ndarray, index: np.ndarray) -> Pictures: ...

    def actual(self, rows: np.ndarray, index: np.ndarray) -> np.ndarray:
        """`index`, with the positions that stand in for pictures that failed."""
        return index


class EqualStore(PixelStore):
    """Pictures of one size, in memory or memory-mapped: uint8 [N, C, H, W], or [N, H, W, C] with `channels_last`."""

    def __init__(self, pixels: np.ndarray, channels_last: bool = False) -> None:
        self._pixels, self._channels_last = pixels, channels_last

    def gather(self, rows: np.ndarray, index: np.ndarray) -> Pictures:
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels[rows[index]]))
        pixels = pixels.permute(0, 3, 1, 2) if self._channels_last else pixels
        size = torch.tensor(pixels.shape[2:], dtype=torch.int64).expand(len(index), 2)
        return pixels, size.clone()


class MixedStore(PixelStore):
    """Pictures of many sizes, one after the other as [h, w, c] in a flat uint8 array; shapes[i] is (c, h, w)."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray, shapes: np.ndarray, channels: int) -> None:
        self._flat, self._offsets, self._shapes, self._channels = flat, offsets, shapes, channels

    def gather(self, rows: np.ndarray, index: np.ndarray) -> Pictures:
        return on_canvas([self._picture(row) for row in rows[index].tolist()], self._channels)

    def _picture(self, row: int) -> np.ndarray:
        c, h, w = self._shapes[row]
        return self._flat[self._offsets[row] : self._offsets[row + 1]].reshape(h, w, c).transpose(2, 0, 1)


class DirectStore(PixelStore):
    """Pictures decoded from their files whenever they are fetched.

    One that fails is replaced by the next good one in the source's order and added to `skipped`. Where more than
    `max_bad` of all have failed, RunStopped: the disk is gone rather than a file bad.
    """

    def __init__(self, loader: Loader, channels: int, skipped: list[Skipped], max_bad: float) -> None:
        self._loader, self._channels, self._skipped = loader, channels, skipped
        self._failed: set[int] = set()
        self._allowed = max(1, int(max_bad * len(loader)))
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(cpu_threads() if loader.parallel else 1, thread_name_prefix="decode")

    def gather(self, rows: np.ndarray, index: np.ndarray) -> Pictures:
        return on_canvas(list(self._pool.map(lambda i: self._load(rows, int(i)), index)), self._channels)

    def actual(self, rows: np.ndarray, index: np.ndarray) -> np.ndarray:
        if not self._failed:
            return index
        return np.array([next(self._good(rows, int(i)), int(i)) for i in index], dtype=np.int64)

    def _good(self, rows: np.ndarray, index: int) -> Iterator[int]:
        """Positions from `index` on, round about, of pictures that have not failed."""
        for step in range(len(rows)):
            position = (index + step) % len(rows)
            if int(rows[position]) not in self._failed:
                yield position

    def _load(self, rows: np.ndarray, index: int) -> np.ndarray:
        for position in self._good(rows, index):
            row = int(rows[position])
            try:
                pixels = self._loader.load(row)[0]
                if len(pixels) > self._channels:
                    raise BadSample("became a colour picture since it was listed")
                return pixels
            except BadSample as error:
                self._record(row, str(error))
        raise RunStopped("no picture could be read any more; is the disk still there?")

    def _record(self, row: int, reason: str) -> None:
        with self._lock:
            if row not in self._failed:
                self._failed.add(row)
                self._skipped.append(Skipped(self._loader.names[row], reason))
            if len(self._failed) > self._allowed:
                raise RunStopped(
                    f"{len(self._failed)} of {len(self._loader)} pictures could not be read while in use, last "
                    f"{self._skipped[-1].name} ({reason}); is the disk still there?"
                )


class ImageSource(Source):
    """Pictures. fetch gives "pixels" uint8 [B, C, H, W], zero-padded to the batch's largest, and "size" int64 [B, 2].

    channels: 1 or 3, for all samples; greys among colour pictures become RGB.
    sizes: int32 [N, 2], heights and widths as stored.
    """

    kind = "image"

    def __init__(
        self,
        store: PixelStore,
        *,
        names: Sequence[str],
        hashes: np.ndarray,
        sizes: np.ndarray,
        channels: int,
        labels: np.ndarray | None,
        classes: list[str],
        skipped: list[Skipped],
        rows: np.ndarray | None = None,
    ) -> None:
        self._store = store
        self._rows = np.arange(len(hashes)) if rows is None else rows
        self.names, self.hashes, self.sizes, self.channels = names, hashes, sizes, channels
        self.labels, self.classes, self.skipped = labels, classes, skipped

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        pixels, size = self._store.gather(self._rows, index)
        return {"pixels": pixels, "size": size}

    def actual(self, index: np.ndarray) -> np.ndarray:
        return self._store.actual(self._rows, index)

    def subset(self, index: np.ndarray) -> "ImageSource":
        index = np.arange(len(self))[index]  # also refuses positions out of range
        return ImageSource(
            self._store,
            names=Picked(self.names, index),
            hashes=self.hashes[index],
            sizes=self.sizes[index],
            channels=self.channels,
            labels=None if self.labels is None else self.labels[index],
            classes=self.classes,
            skipped=self.skipped,
            rows=self._rows[index],
        )
