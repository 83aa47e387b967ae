"""Small picture files for the tests of selftaught.data."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 12, width: int = 12, channels: int = 3) -> np.ndarray:
    """Smooth random uint8 [H, W, 3] or [H, W]: a picture no other seed resembles."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, channels)).astype(np.uint8)
    image = Image.fromarray(coarse if channels == 3 else coarse[:, :, 0])
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def save(path: Path, seed: int, height: int = 12, width: int = 12, channels: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels(seed, height, width, channels), "JPEG" if path.suffix == ".jpg" else "PNG"))


def folder(root: Path, n: int, suffix: str = ".png", **shape: int) -> Path:
    for seed in range(n):
        save(root / f"{seed:03d}{suffix}", seed, **shape)
    return root


def bomb(side: int) -> bytes:
    """A PNG of side x side white RGB pixels, a thousandth of its decoded size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (3 * side)
    rows = [packer.compress(row * 64) for _ in range(side // 64)] + [packer.flush()]
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(rows)) + chunk(b"IEND", b"")


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
