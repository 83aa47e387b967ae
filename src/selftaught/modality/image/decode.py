"""Untrusted picture files to uint8 arrays, or one short reason why not.

JPEGs go through simplejpeg where it is installed (the extra vision-fast): the same library with the same settings as
PIL's, so the same pixels, without PIL's detour through four channels. Whatever it does not take, PIL is asked.

PIL's global switches stay as they are and no warning filter is touched, so several threads may decode at once. The
only PIL warning about pixels (DecompressionBombWarning, from 89 megapixels on) lies above the default limit here, which
refuses such a picture anyway; the others are about metadata of files whose pixels are whole.
"""

import io
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from selftaught.errors import BadSample

try:
    from simplejpeg import decode_jpeg
except ImportError:
    decode_jpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000

_MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG",),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "GIF": (b"GIF8",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PPM": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
}
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation -> what undoes it, of [C, H, W]
    2: lambda x: x[:, :, ::-1],
    3: lambda x: x[:, ::-1, ::-1],
    4: lambda x: x[:, ::-1],
    5: lambda x: x.transpose(0, 2, 1),
    6: lambda x: x.transpose(0, 2, 1)[:, :, ::-1],
    7: lambda x: x.transpose(0, 2, 1)[:, ::-1, ::-1],
    8: lambda x: x.transpose(0, 2, 1)[:, ::-1],
}


class Header(NamedTuple):
    """What a picture will decode to: `width` and `height` as displayed (EXIF applied), `channels` 1 (grey) or 3."""

    format: str
    width: int
    height: int
    channels: int


def read_header(data: bytes) -> Header:
    """Format, size and channels without decoding a pixel. Raises BadSample where the bytes are no picture."""
    return _header(_open(data))


def decode(data: bytes, *, short_side: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture as uint8 [C, H, W]: C = 1 for greys, 3 (RGB) for everything else; the first frame of an animation.

    Alpha is composited over white, palettes and CMYK become RGB, EXIF orientation is applied. Greys deeper than 8 bits
    are scaled to 0..255 (see `_to_8_bits`).

    short_side: if given, the picture is shrunk (antialiased, never enlarged) so that its short side is exactly this
        and its long side at most twice this; a picture longer than 2:1 is shrunk further, to 1 pixel at the least.
        A JPEG is then decoded at the smallest DCT scale (1/2, 1/4, 1/8) that is still no smaller than the result.
    max_pixels: the largest width x height in the header that is decoded at all.

    Raises BadSample with the reason.
    """
    image = _open(data)
    header = _header(image)
    if header.width * header.height > max_pixels:
        raise BadSample(
            f"decodes to {header.width * header.height * header.channels / 1e6:.0f} MB "
            f"({header.width} x {header.height}); limit is {max_pixels / 1e6:g} megapixels"
        )
    orientation = _orientation(image)
    try:
        target = image.size if short_side is None else shrunk(image.size, short_side)
        pixels = _jpeg(data, image, target) if header.format == "JPEG" else None
        if pixels is None:
            if target != image.size and header.format == "JPEG":
                image.draft(None, target)
            image.load()
            pixels = np.asarray(_flatten(image, grey=header.channels == 1))
    except MemoryError:
        raise BadSample(f"not enough memory to decode {header.width} x {header.height}") from None
    except Exception as error:  # on damaged bytes PIL's parsers raise anything: the sample is bad, the run goes on
        raise BadSample(_damage(header.format, error)) from None
    pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    if pixels.shape[1:] != target[::-1]:
        pixels = _resized(pixels, target)
    return _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels


def _jpeg(data: bytes, image: Image.Image, target: tuple[int, int]) -> np.ndarray | None:
    """A JPEG, [H, W, 3] or [H, W, 1], at the DCT scale that PIL's `draft` picks; None where PIL has to do it."""
    if decode_jpeg is None or image.mode not in ("RGB", "L"):
        return None
    fitting = min(image.width // target[0], image.height // target[1])
    scale = next(s for s in (8, 4, 2, 1) if s <= fitting)
    width, height = (-(side // -scale) for side in image.size)
    try:
        pixels = decode_jpeg(
            data, colorspace="RGB" if image.mode == "RGB" else "GRAY", min_height=height, min_width=width, min_factor=1
        )
    except ValueError:  # damaged: PIL says what is wrong
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bilinear resize of uint8 [C, H, W]: PIL's but for a last bit in a few pixels of 10 000, three times as fast."""
    x = torch.from_numpy(np.require(pixels, requirements="W"))[None]
    return F.interpolate(x, size=size[::-1], mode="bilinear", antialias=True)[0].numpy()


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadSample("empty file")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the latter under python -W error
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise BadSample(f"decodes to {pixels / 1e6:.0f} megapixels; limit is {MAX_PIXELS / 1e6:g}") from None
    except UnidentifiedImageError:
        raise BadSample(_unidentified(data)) from None
    except Exception as error:
        raise BadSample(f"{_unidentified(data)} ({_one_line(error)})") from None


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if _orientation(image) >= 5:  # a quarter turn
        width, height = height, width
    # PIL calls a JPEG that carries a second picture (many phones' photographs) MPO.
    name = "JPEG" if image.format == "MPO" else str(image.format)
    return Header(name, width, height, 1 if image.mode in _GREY_MODES else 3)


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # PIL turns these itself while loading
        return 1
    try:
        # The base class's method: PNG's own one would decode the picture to look for EXIF behind the pixels.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata of a whole picture
        return 1
    return value if value in _UPRIGHT else 1


def shrunk(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """What `decode` makes of a picture of this size, its sides in either order."""
    scale = min(1.0, short_side / min(size), 2 * short_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _flatten(image: Image.Image, grey: bool) -> Image.Image:
    """Mode L or RGB, without transparency."""
    if image.mode[0] in "IF":
        return Image.fromarray(_to_8_bits(np.asarray(image), image.mode, image.info.get("transparency")))
    plain = "L" if grey else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == plain else image.convert(plain)
    # Through RGBA also for greys: PIL cannot composite LA, and equal channels stay equal.
    layered = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert(plain)


def _to_8_bits(values: np.ndarray, mode: str, transparent: object) -> np.ndarray:
    """Greys of 16 or 32 bits to uint8.

    16 bits: 0..65535 to 0..255. Floats: [0, 1] to 0..255, [0, 255] as they are. 32-bit integers beyond 65535 and floats
    beyond 255 or below 0 have no agreed white, so the picture's own range is stretched to 0..255.
    """
    x = values.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("pixels that are not finite")
    if isinstance(transparent, int):
        x[values == transparent] = 65535
    low, high = x.min(), x.max()
    white = 65535 if mode != "F" else 1 if high <= 1 else 255
    if low >= 0 and high <= white:
        low, high = 0, white
    return np.rint((x - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _unidentified(data: bytes) -> str:
    for name, starts in _MAGIC.items():
        if data.startswith(starts):
            return f"truncated or damaged {name} header"
    return f"not a picture (starts with {data[:8]!r})"


def _damage(name: str, error: Exception) -> str:
    text = _one_line(error)
    if isinstance(error, EOFError) or re.search(r"truncat|premature|ended|not enough", text, re.IGNORECASE):
        return f"truncated {name}"
    return f"damaged {name} ({text})"


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:80]
