"""One encoded picture at a time: from a listing of files, or from a torch Dataset."""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from selftaught.data.arrays import to_pictures
from selftaught.data.listing import Listing
from selftaught.data.source import content_hash
from selftaught.errors import BadSample, UserError
from selftaught.modality.image.decode import MAX_PIXELS, decode, read_header

MIN_SIDE = 4  # pixels; a smaller picture has nothing to learn from


def pixel_hash(pixels: np.ndarray) -> int:
    """Content hash of a picture that has no file: its shape and pixels."""
    return content_hash(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())


def _check_side(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise BadSample(f"{width} x {height} pixels; at least {MIN_SIDE} a side are needed")


class Loader(ABC):
    """N pictures by position. `parallel`: whether several threads may call it at once."""

    parallel: bool
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def load(self, index: int) -> tuple[np.ndarray, int]:
        """(pixels uint8 [C, H, W] at the stored size, content hash). Raises BadSample."""

    @abstractmethod
    def scan(self, index: int) -> tuple[tuple[int, int, int], int]:
        """(shape (C, H, W) that `load` will give, content hash), without decoding where possible. Raises BadSample."""


class FileLoader(Loader):
    """Picture files and tar members; shrunk so that the short side is `short_side` where it is larger."""

    parallel = True

    def __init__(self, listing: Listing, short_side: int | None) -> None:
        self.names, self._listing, self._short_side = listing.names, listing, short_side

    def load(self, index: int) -> tuple[np.ndarray, int]:
        data = self._listing.read(index)
        pixels = decode(data, short_side=self._short_side)
        _check_side(*pixels.shape[1:])
        return pixels, content_hash(data)

    def scan(self, index: int) -> tuple[tuple[int, int, int], int]:
        data = self._listing.read(index)
        header = read_header(data)
        height, width = header.height, header.width
        _check_side(height, width)
        if height * width > MAX_PIXELS:
            raise BadSample(f"{width} x {height} pixels; limit is {MAX_PIXELS / 1e6:g} megapixels")
        if self._short_side is not None:
            scale = min(1.0, self._short_side / min(height, width), 2 * self._short_side / max(height, width))
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
        return (header.channels, height, width), content_hash(data)


class DatasetLoader(Loader):
    """A map-style torch Dataset of pictures (PIL, tensor or array), or of (picture, label, ...) tuples.

    Items are asked for one at a time: a user's `__getitem__` need not be thread-safe. `labels` fills while loading.
    """

    parallel = False

    def __init__(self, dataset: Dataset[Any], n: int, short_side: int | None) -> None:
        self.names = [f"item {i}" for i in range(n)]
        self.labels: list[str | None] = [None] * n
        self._dataset, self._short_side = dataset, short_side

    def load(self, index: int) -> tuple[np.ndarray, int]:
        try:
            item = self._dataset[index]
        except Exception as error:  # the user's code: whatever it raises, this sample is bad
            raise BadSample(f"{type(error).__name__}: {' '.join(str(error).split())[:80]}") from None
        if isinstance(item, tuple | list):
            if len(item) > 1:
                self.labels[index] = _label(item[1])
            item = item[0]
        image, hashed = _pixels(item)
        if self._short_side is not None and min(image.shape[1:]) > self._short_side:
            image = decode(
                _encoded(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))),
                short_side=self._short_side,
            )
        _check_side(*image.shape[1:])
        return image, hashed

    def scan(self, index: int) -> tuple[tuple[int, int, int], int]:
        pixels, hashed = self.load(index)
        c, h, w = pixels.shape
        return (c, h, w), hashed


def _label(value: Any) -> str | None:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.item() if value.size in (1, torch.Size([])) or np.ndim(value) == 0 else None
    return str(value) if isinstance(value, str | int) and value != -1 else None


def _pixels(item: Any) -> tuple[np.ndarray, int]:
    """(uint8 [C, H, W], content hash) of a PIL picture, tensor or array."""
    if isinstance(item, Image.Image):
        if item.mode == "L":
            pixels = np.asarray(item)[None]
        elif item.mode == "RGB":
            pixels = np.asarray(item).transpose(2, 0, 1)
        else:
            pixels = decode(_encoded(item))
    elif isinstance(item, torch.Tensor | np.ndarray):
        try:
            pixels = to_pictures(np.asarray(item)[None], "the item")[0]
        except UserError as error:
            raise BadSample(str(error)) from None
    else:
        raise BadSample(f"item of type {type(item).__name__}; give a PIL picture, tensor or array, or (picture, label)")
    pixels = np.ascontiguousarray(pixels)
    return pixels, pixel_hash(pixels)


def _encoded(image: Image.Image) -> bytes:
    """A picture in memory as a file's bytes, without loss, so that `decode` has the one rule for modes and sizes."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PPM" if image.mode in ("L", "RGB") else "PNG")
    except OSError as error:
        raise BadSample(f"picture of mode {image.mode}: {error}") from None
    return buffer.getvalue()
