"""Arrays in memory or in .npy and .npz files to uint8 pictures [N, C, H, W]; what is ambiguous is refused."""

import os
import zipfile
from pathlib import Path

import numpy as np

from selftaught.data.listing import why
from selftaught.errors import UserError

SUFFIXES = frozenset({".npy", ".npz"})
_PICTURE_KEYS = ("images", "pixels", "x", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "targets", "arr_1")
_CHUNK = 64 * 2**20  # bytes of floats converted at a time


def load_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(pictures as stored, labels or None) of a .npy (memory-mapped) or .npz file; object arrays are refused."""
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        return _load_npz(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}; check its path and permissions") from None
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError, MemoryError) as error:
        reason = str(error).split("\n")[0]
        if "allow_pickle" in reason or "Python objects" in reason:
            reason = "it holds Python objects, which are never unpickled"
        raise UserError(f"{path} cannot be read: {reason}; save a plain uint8 array with numpy.save") from None


def _load_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as archive:
        size = sum(item.file_size for item in archive.infolist())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory // 2:
        raise UserError(f"{path} unpacks to {size / 1e9:.1f} GB, more than half the memory; save it as .npy instead")
    with np.load(path, allow_pickle=False) as arrays:
        keys = list(arrays.files)
        lower = {key.lower(): key for key in keys}
        pictures = next((lower[key] for key in _PICTURE_KEYS if key in lower), keys[0] if len(keys) == 1 else None)
        if pictures is None:
            raise UserError(
                f"{path} holds {', '.join(keys[:10])}; call the pictures 'images' and their labels 'labels'"
            )
        labels = next((lower[key] for key in _LABEL_KEYS if key in lower and lower[key] != pictures), None)
        return arrays[pictures], None if labels is None else arrays[labels]


def to_pictures(x: np.ndarray, name: str = "the array") -> np.ndarray:
    """uint8 [N, C, H, W], C 1 or 3, from [N, H, W], [N, H, W, C] or [N, C, H, W]: a view where `x` is uint8.

    Accepts uint8, bool and floats in [0, 1]. Raises UserError for any other type, range or shape, and where the place
    of the channels is ambiguous.
    """
    shape = "x".join(map(str, x.shape))
    if x.ndim == 3 and x.shape[2] in (1, 3, 4):
        raise UserError(f"{name} of shape {shape} looks like one picture, not many; stack pictures as [N, H, W, C]")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4:
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first and last:
            raise UserError(f"{name} of shape {shape}: channels could be axis 1 or axis 3; pass wider pictures")
        if not first and not last:
            fix = "; drop the alpha channel, x[..., :3]" if 4 in (x.shape[1], x.shape[3]) else ""
            raise UserError(
                f"{name} of shape {shape} has neither 1 nor 3 channels on axis 1 or 3{fix or '; use [N, H, W, 3]'}"
            )
        x = x if first else x.transpose(0, 3, 1, 2)
    else:
        raise UserError(f"{name} of shape {shape} is not [N, H, W], [N, H, W, C] or [N, C, H, W]; reshape it")
    if 0 in x.shape:
        raise UserError(f"{name} of shape {shape} holds no pixel")
    return x if x.dtype == np.uint8 else _to_uint8(x, name)


def _to_uint8(x: np.ndarray, name: str) -> np.ndarray:
    if x.dtype == np.bool_:
        return x.astype(np.uint8) * np.uint8(255)
    if x.dtype.kind != "f":
        raise UserError(f"{name} has type {x.dtype}; use uint8 (x.astype('uint8') for 0..255) or floats in [0, 1]")
    out = np.empty(x.shape, np.uint8)
    step = max(1, _CHUNK // max(1, x[0].nbytes))
    for start in range(0, len(x), step):
        part = np.asarray(x[start : start + step], dtype=np.float32)
        low, high = float(part.min()), float(part.max())
        if not np.isfinite(part).all():
            bad = start + int(np.flatnonzero(~np.isfinite(part).all(axis=(1, 2, 3)))[0])
            raise UserError(f"{name} holds NaN or infinity, first in picture {bad}; replace or drop such pictures")
        if low < 0 or high > 1:
            fix = "divide by 255" if low >= 0 and 1 < high <= 255 else "undo the normalisation"
            raise UserError(f"{name} has floats from {low:.4g} to {high:.4g}, outside [0, 1]; {fix}, or pass uint8")
        out[start : start + step] = np.rint(part * 255)
    return out


def to_labels(labels: np.ndarray, n: int) -> list[str | None]:
    """Labels [N] (integers or text) as text; negative integers mean unknown. Raises UserError for any other shape."""
    labels = np.asarray(labels)
    if labels.shape != (n,) or labels.dtype.kind not in "iuUb":
        raise UserError(f"labels of type {labels.dtype}, shape {list(labels.shape)}; use {n} integers or strings")
    if labels.dtype.kind in "Ub":
        return [str(v) for v in labels.tolist()]
    return [None if v < 0 else str(v) for v in labels.tolist()]
