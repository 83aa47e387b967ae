"""Decoding: what each kind of file becomes, and the reason given for each that cannot be used."""

import contextlib
import importlib
import io

import numpy as np
import pytest
from PIL import Image, features

from selftaught.errors import BadSample
from selftaught.modality.image.decode import decode, read_header


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    """Smooth noise, so that JPEG keeps it."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, channels), dtype=np.uint8)
    image = Image.fromarray(small[..., 0] if channels == 1 else small)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def as_array(image: Image.Image) -> np.ndarray:
    x = np.asarray(image)
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_keep_every_pixel(format: str, channels: int) -> None:
    image = noise(37, 23, channels)
    data = encoded(image, format)
    assert read_header(data) == (format, 37, 23, channels)
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.transpose(1, 2, 0).flags.c_contiguous
    np.testing.assert_array_equal(pixels, as_array(image))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(format: str) -> None:
    image = noise(64, 48)
    data = encoded(image, format, quality=95)
    assert read_header(data) == (format, 64, 48, 3)
    assert np.abs(decode(data).astype(int) - as_array(image)).mean() < 4
    assert features.check("webp")


def test_alpha_lies_over_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, 0, 3], rgba[0, 1, 3], rgba[0, 2, 3] = 255, 0, 128
    pixels = decode(encoded(Image.fromarray(rgba)))
    assert pixels[:, 0, 0].tolist() == [200, 0, 0]
    assert pixels[:, 0, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(pixels[:, 0, 2], [227, 127, 127], atol=1)


def test_grey_alpha_stays_grey() -> None:
    la = np.array([[[10, 255], [10, 0]]], np.uint8)
    data = encoded(Image.merge("LA", [Image.fromarray(la[..., i]) for i in (0, 1)]))
    assert read_header(data).channels == 1
    assert decode(data).tolist() == [[[10, 255]]]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palettes_become_rgb(format: str) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    data = encoded(image, format)
    assert read_header(data).channels == 3
    assert decode(data)[:, 0, 0].tolist() == [10, 200, 30]


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert decode(encoded(image, transparency=1)).min() == 255
    assert decode(encoded(image, transparency=bytes([255, 0]))).min() == 255


def test_transparent_grey_value_is_white() -> None:
    assert decode(encoded(Image.fromarray(np.array([[7, 9]], np.uint8)), transparency=7)).tolist() == [[[255, 9]]]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    pixels = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixels[:, 2, 2].tolist() == [200, 0, 0]


def test_deep_greys_fill_eight_bits() -> None:
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(deep))).tolist() == [[[0, 1, 128, 255]]]
    unit = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert decode(encoded(Image.fromarray(unit), "TIFF")).tolist() == [[[0, 128, 255]]]
    byte = np.array([[0.0, 100.4, 200.0]], np.float32)
    assert decode(encoded(Image.fromarray(byte), "TIFF")).tolist() == [[[0, 100, 200]]]
    wide = np.array([[-100.0, 0.0, 300.0]], np.float32)
    assert decode(encoded(Image.fromarray(wide), "TIFF")).tolist() == [[[0, 64, 255]]]
    with pytest.raises(BadSample, match="not finite"):
        decode(encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


def test_bilevel() -> None:
    assert decode(encoded(Image.fromarray(np.array([[True, False]])))).tolist() == [[[255, 0]]]


def test_cmyk_becomes_rgb() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert read_header(data).channels == 3
    np.testing.assert_allclose(decode(data)[:, 8, 8], [255, 0, 0], atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    image = noise(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"quality": 95, "lossless": True}
        if format == "WEBP"
        else {"quality": 98, "subsampling": 0}
        if format == "JPEG"
        else {}
    )
    data = encoded(image, format, exif=exif, **options)
    header = read_header(data)
    assert (header.width, header.height) == ((24, 40) if orientation >= 5 else (40, 24))
    x = as_array(image)
    expected = {
        1: x,
        2: x[:, :, ::-1],
        3: x[:, ::-1, ::-1],
        4: x[:, ::-1],
        5: x.transpose(0, 2, 1),
        6: x[:, ::-1].transpose(0, 2, 1),
        7: x[:, ::-1, ::-1].transpose(0, 2, 1),
        8: x[:, :, ::-1].transpose(0, 2, 1),
    }[orientation]
    pixels = decode(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 4
    assert decode(data, short_side=12).shape == ((3, 20, 12) if orientation >= 5 else (3, 12, 20))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = encoded(noise(16, 16), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((500, 375), 224, (224, 299)),
        ((375, 500), 100, (133, 100)),
        ((100, 100), 224, (100, 100)),  # never enlarged
        ((224, 300), 224, (300, 224)),
        ((1000, 100), 50, (10, 100)),  # longer than 2:1: the long side decides
        ((1000, 100), 224, (45, 448)),
        ((700, 1), 20, (1, 40)),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_short_side(format: str, size: tuple[int, int], short_side: int, expected: tuple[int, int]) -> None:
    assert decode(encoded(noise(*size), format), short_side=short_side).shape == (3, *expected)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("short_side", [None, 150, 74, 37, 20, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_jpeg_decoders_give_the_same_pixels(
    mode: str, short_side: int | None, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the extra vision-fast nothing changes but the time."""
    module = importlib.import_module("selftaught.modality.image.decode")
    assert module.decode_jpeg is not None, "the development environment has the extra"
    data = encoded(noise(301, 151).convert(mode), "JPEG", **options)
    fast = decode(data, short_side=short_side)
    monkeypatch.setattr(module, "decode_jpeg", None)
    np.testing.assert_array_equal(fast, decode(data, short_side=short_side))


def test_a_jpeg_the_fast_decoder_refuses_goes_to_pil() -> None:
    """CMYK is not its business, and PIL says what is wrong with damaged bytes."""
    image = noise(400, 240)
    assert decode(encoded(image.convert("CMYK"), "JPEG")).shape == (3, 240, 400)
    data = encoded(image, "JPEG")
    with pytest.raises(BadSample, match="truncated JPEG"):
        decode(data[: len(data) // 2])


def test_reduced_decoding_is_close_to_full_decoding() -> None:
    image = noise(640, 480)
    small = decode(encoded(image, "JPEG", quality=95), short_side=96).astype(int)
    full = as_array(image.resize((128, 96), Image.Resampling.BILINEAR))
    assert np.abs(small - full).mean() < 3


def test_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(300, 200))

    def must_not_run(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", must_not_run)
    assert read_header(data).width == 300
    with pytest.raises(BadSample, match=r"decodes to 0 MB \(300 x 200\); limit is 0.05 megapixels"):
        decode(data, max_pixels=50_000)


@pytest.mark.parametrize("side", [12_000, 30_000])
def test_decompression_bombs_are_refused(side: int) -> None:
    data = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    data[18:26] = side.to_bytes(4, "little") * 2
    with pytest.warns(Image.DecompressionBombWarning) if side == 12_000 else pytest.raises(BadSample, match="900 mega"):
        read_header(bytes(data))
    with pytest.raises(BadSample, match=f"{side * side // 1_000_000} megapixels"):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html><body>404", r"not a picture \(starts with b'<html><b'\)"),
        (b"%PDF-1.7 something", "not a picture"),
        (b"\xff\xd8\xff\xe0", "truncated or damaged JPEG header"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    for function in (read_header, decode):
        with pytest.raises(BadSample, match=reason):
            function(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_truncated(format: str) -> None:
    data = encoded(noise(200, 150), format)
    with pytest.raises(BadSample, match=format):
        decode(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "EPS"])
def test_formats_off_the_list_are_refused(format: str) -> None:
    with pytest.raises(BadSample):
        decode(encoded(noise(32, 32), format))


def test_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        whole = np.frombuffer(encoded(noise(40, 30), format), np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            with contextlib.suppress(BadSample):
                decode(data.tobytes(), max_pixels=1_000_000)
