"""Every kind of bad image is named; every good one comes out as the right RGB pixels."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.dataset.images import ImageLimits, image_key, open_image
from src.errors import RecordError

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, form, **options)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def damaged_png() -> bytes:
    """The checksum of the pixels is wrong."""
    data = bytearray(encoded(NOISE))
    data[len(data) // 2] ^= 255
    return bytes(data)


PNG, JPEG = encoded(NOISE), encoded(NOISE, "JPEG")
BAD = {
    "empty file": (b"", "empty_image"),
    "text named .jpg": (b"this is not an image", "unreadable_image"),
    "html": (b"<html>404</html>" * 100, "unreadable_image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable_image"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated_image"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated_image"),
    "half a TIFF": (encoded(NOISE, "TIFF")[:9000], "truncated_image"),
    "half a BMP": (encoded(NOISE, "BMP")[:9000], "truncated_image"),
    "signature only": (PNG[:8], "unreadable_image"),
    "damaged PNG": (damaged_png(), "unreadable_image"),
    "1x1": (encoded(np.zeros((1, 1, 3), np.uint8)), "image_too_small"),
    "1x50": (encoded(np.zeros((50, 1, 3), np.uint8)), "image_too_small"),
    "20000x10": (encoded(np.zeros((10, 20000), np.uint8)), "bad_aspect_ratio"),
    "bomb beyond Pillow's limit": (png_claiming(50_000, 50_000), "image_too_large"),
    "bomb beyond ours": (png_claiming(12_000, 10_000), "image_too_large"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["path", "bytes", "mapping"])
@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_named(tmp_path, name, form):
    content, kind = BAD[name]
    (tmp_path / "x.jpg").write_bytes(content)
    source = {"path": "x.jpg", "bytes": content, "mapping": {"bytes": content, "path": "other.jpg"}}[form]
    with pytest.raises(RecordError) as caught:
        open_image(source, root=tmp_path)
    assert caught.value.kind == kind
    if form == "path":
        assert "x.jpg" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("missing.jpg", "missing_image"),
        ("a.png/inside.jpg", "missing_image"),
        ("", "missing_image"),
        ({"bytes": None, "path": None}, "missing_image"),
        ({}, "missing_image"),
        ("nul\0.jpg", "missing_image"),
        ("n" * 5000, "missing_image"),
        ("folder", "unreadable_image"),
        ("pipe", "unreadable_image"),
        (12, "unreadable_image"),
        ("loop", "missing_image"),
        ("../outside.png", "unsafe_path"),
        ("folder/../../outside.png", "unsafe_path"),
        ("../nothing-there.png", "unsafe_path"),
        ("/etc/hostname", "unsafe_path"),
        ("link.png", "unsafe_path"),
        ("linked-folder/outside.png", "unsafe_path"),
        ("http://example.com/a.png", "unsafe_path"),
        ("FILE:///etc/hostname", "unsafe_path"),
        ("data:image/png;base64,AAAA", "unsafe_path"),
        (Path("https://example.com/a.png"), "unsafe_path"),
    ],
)
def test_bad_places_are_named(tmp_path, source, kind):
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "a.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "linked-folder").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    with pytest.raises(RecordError) as caught:
        open_image(source, root=root)
    assert caught.value.kind == kind
    assert len(str(caught.value)) < 1000


def test_places_inside_the_root_are_fine(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "sub" / "link.png").symlink_to(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for source in ("a.png", "sub/../a.png", str(tmp_path / "a.png"), Path("a.png"), "sub/link.png", {"path": "a.png"}):
        for root in (tmp_path, Path()):
            assert np.array_equal(open_image(source, root), NOISE)
            assert image_key(source, root) == f"path:{tmp_path.resolve() / 'a.png'}"
    assert np.array_equal(open_image("sub/../a.png"), NOISE)
    assert np.array_equal(open_image(tmp_path / "a.png"), NOISE)


def test_file_size_limit(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    for source in ("a.png", PNG):
        with pytest.raises(RecordError) as caught:
            open_image(source, tmp_path, ImageLimits(max_bytes=len(PNG) - 1))
        assert caught.value.kind == "image_too_large"
        assert open_image(source, tmp_path, ImageLimits(max_bytes=len(PNG))).size == (96, 64)


def test_wide_image_is_fine():
    image = open_image(encoded(np.full((800, 20000), 7, np.uint8)))
    assert (image.mode, image.size, image.getpixel((19999, 799))) == ("RGB", (20000, 800), (7, 7, 7))


def test_limits_are_inclusive():
    limits = ImageLimits(max_pixels=800, min_side=2, max_aspect_ratio=200)
    assert open_image(Image.new("RGB", (400, 2)), limits=limits).size == (400, 2)
    with pytest.raises(RecordError, match="limit 800"):
        open_image(Image.new("RGB", (401, 2)), limits=limits)
    with pytest.raises(RecordError, match="200 times"):
        open_image(Image.new("RGB", (401, 2)))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257], [300, 32768, 65278, 65535]], np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    assert expected.max() == 255
    for source in (encoded(values), encoded(values, "TIFF"), Image.fromarray(values)):
        assert np.array_equal(np.asarray(open_image(source))[..., 1], expected)
    big_endian = Image.frombytes("I;16B", (4, 2), values.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(open_image(big_endian))[..., 2], expected)
    integers = Image.fromarray(values.astype(np.int32))
    assert integers.mode == "I"
    assert np.array_equal(np.asarray(open_image(integers))[..., 0], expected)


def test_wide_integers_and_floats_are_stretched():
    integers = np.array([[-1000, 0], [1000, 3000]], np.int32)
    assert np.asarray(open_image(Image.fromarray(integers)))[..., 0].tolist() == [[0, 64], [128, 255]]
    floats = np.array([[0.25, np.nan, -np.inf], [0.75, 0.5, np.inf]], np.float32)
    assert np.asarray(open_image(encoded(floats, "TIFF")))[..., 0].tolist() == [[0, 0, 0], [255, 128, 255]]
    for constant in (np.full((4, 4), 0.5), np.full((4, 4), np.nan)):
        assert not np.asarray(open_image(Image.fromarray(constant.astype(np.float32)))).any()


def test_alpha_is_dropped_not_blended():
    pixels = np.dstack([NOISE, np.zeros((64, 96), np.uint8)])
    assert np.array_equal(open_image(encoded(pixels)), NOISE)
    grey = Image.merge("LA", [Image.new("L", (4, 4), 200), Image.new("L", (4, 4), 0)])
    assert open_image(encoded(grey)).getpixel((0, 0)) == (200, 200, 200)
    assert open_image(grey.convert("La").convert("LA")).mode == "RGB"
    premultiplied = Image.new("RGBA", (4, 4), (255, 0, 0, 255)).convert("RGBa")
    assert open_image(premultiplied).getpixel((0, 0)) == (255, 0, 0)


def test_palette_with_transparency_keeps_its_colours():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for transparency in (1, b"\xff\x00"):
            assert open_image(encoded(image, transparency=transparency)).getpixel((3, 3)) == (200, 100, 50)
        assert open_image(encoded(image)).getpixel((3, 3)) == (200, 100, 50)


def test_other_modes():
    assert open_image(encoded(Image.new("1", (8, 8), 1))).getpixel((0, 0)) == (255, 255, 255)
    cmyk = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = open_image(cmyk).getpixel((5, 5))
    assert red > 250
    assert max(green, blue) < 5
    for mode in ("YCbCr", "HSV"):
        red, green, blue = open_image(Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode)).getpixel((0, 0))
        assert red > 250
        assert max(green, blue) < 5


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "TIFF"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        red, _, blue = open_image(data).getpixel((4, 4))
        assert red > 240
        assert blue < 15


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(NOISE, "JPEG", exif=exif)).size == (96, 64)


def test_the_picture_is_new_and_the_given_one_untouched():
    given = Image.fromarray(NOISE)
    opened = open_image(given)
    opened.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(given, NOISE)


def test_keys_tell_sources_apart(tmp_path):
    image = Image.fromarray(NOISE)
    assert image_key(PNG) == image_key({"bytes": bytes(PNG), "path": "x"}) != image_key(JPEG)
    assert image_key(image) == image_key(image.copy()) != image_key(image.transpose(Image.Transpose.ROTATE_180))
    assert image_key(image) != image_key(image.resize((64, 96)))
    assert image_key("a.png", tmp_path) != image_key("b.png", tmp_path) != image_key("b.png", tmp_path / "c")
    assert image_key("../b.png", tmp_path) == image_key("../b.png", tmp_path)
    palettes = [Image.new("P", (4, 4)) for _ in range(2)]
    palettes[1].putpalette([9, 9, 9])
    assert image_key(palettes[0]) != image_key(palettes[1])


def test_threads(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    sources = ["a.png", PNG, JPEG[:500], "../a.png"] * 50

    def opened(source):
        try:
            return np.asarray(open_image(source, tmp_path)).tobytes()
        except RecordError as error:
            return error.kind

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(opened, sources))
    assert results == [NOISE.tobytes(), NOISE.tobytes(), "truncated_image", "unsafe_path"] * 50
