"""Open one image, wherever a data set keeps it, as an 8-bit RGB picture; or say by name why not.

Nothing of Pillow's global state is changed, so any number of threads may open images side by side.
"""

import hashlib
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from src.errors import RecordError

ImageSource = str | Path | bytes | Image.Image | Mapping[str, Any]

# Raster formats that Pillow decodes inside the process; EPS, for one, would start an outside program.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "PPM")

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
_16_TO_8_BIT = np.rint(np.arange(65536) / 257).astype(np.uint8)


@dataclass(frozen=True)
class ImageLimits:
    """What an image may measure. Pillow's own bomb limit (about 179 million pixels) holds as well.

    Attributes:
        max_pixels: greatest width x height.
        max_bytes: greatest size of the encoded file.
        min_side: least width and height, in pixels.
        max_aspect_ratio: greatest long side / short side; 200 is the limit of Qwen2-VL's own resizing.
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 2**29
    min_side: int = 2
    max_aspect_ratio: float = 200.0


def open_image(source: ImageSource, root: Path | None = None, limits: ImageLimits | None = None) -> Image.Image:
    """Decode an image to a new RGB picture (8 bits a channel, first frame, size as stored).

    Alpha is dropped, not blended. 16-bit grey becomes value / 257; 32-bit integers beyond 16 bits and floats are
    stretched from their own least and greatest value to 0..255. The EXIF orientation is not applied, as in the
    published loaders (Pillow's open and convert).

    Args:
        source: a path, encoded bytes, a Pillow image, or a mapping with ``bytes`` (wins when not None) or ``path``.
        root: folder that a path is relative to and must stay inside, links followed; absolute paths inside it
            are fine. None: paths are taken as they are.
        limits: checked from the header, before a pixel is decoded; None means ``ImageLimits()``.

    Raises:
        RecordError: missing_image, empty_image, unreadable_image (no image of a known format, or damaged),
            truncated_image, image_too_large, image_too_small, bad_aspect_ratio, unsafe_path (outside the
            root, or a URL).
    """
    limits = limits or ImageLimits()
    source = _unwrap(source)
    if isinstance(source, Image.Image):
        return _decode(source, "image", limits)
    content, name = _content(source, root, limits)
    return _decode(_identify(content, name, limits), name, limits)


def image_size(source: ImageSource, root: Path | None = None, limits: ImageLimits | None = None) -> tuple[int, int]:
    """Width and height in pixels, as the header says; no pixel is decoded.

    Arguments and errors are those of ``open_image``, other than for damage behind the header.
    """
    limits = limits or ImageLimits()
    source = _unwrap(source)
    name = _short(source) if isinstance(source, str | Path) else "image"
    if isinstance(source, str | Path):
        with _reading(locate_image(source, root), name, limits) as file:
            size = _identified(file, name).size
    else:
        size = (source if isinstance(source, Image.Image) else _identify(source, name, limits)).size
    _check_size(size, name, limits)
    return size


def encoded_image(
    source: ImageSource,
    root: Path | None = None,
    limits: ImageLimits | None = None,
    formats: Collection[str] = FORMATS,
    plain: bool = False,
) -> tuple[bytes, str]:
    """The bytes of an image as they are stored, and which of ``FORMATS`` they are, after decoding them once.

    Other arguments and errors are those of ``open_image``.

    Args:
        formats: an image that has none of these, and a Pillow image, becomes a PNG of what ``open_image`` gives.
        plain: so does one that other programs may show otherwise: with alpha, another depth than 8 bits, grey or a
            palette, a profile of colours, an orientation, or several pictures.
    """
    limits = limits or ImageLimits()
    source = _unwrap(source)
    if isinstance(source, Image.Image):
        return png_of(_decode(source, "image", limits)), "PNG"
    content, name = _content(source, root, limits)
    image = _identify(content, name, limits)
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with further pictures behind it
    fine = kind in formats and not (plain and _ambiguous(image, content))
    decoded = _decode(image, name, limits)
    return (content, kind) if fine else (png_of(decoded), "PNG")


def _ambiguous(image: Image.Image, content: bytes) -> bool:
    """Whether programs may differ on what it shows, as its header says."""
    told = {"icc_profile", "transparency", "gamma", "chromaticity"} & set(image.info)
    deep = image.format == "PNG" and content[24] != 8  # Pillow takes the upper half of 16 bits and still says RGB
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # as broken as any part of a file
        turned = True
    return bool(image.mode != "RGB" or told or deep or turned or getattr(image, "n_frames", 1) > 1)


def png_of(image: Image.Image) -> bytes:
    """The pixels of the image as a PNG file, and nothing of what its own file said about them."""
    stream = BytesIO()
    image.save(stream, "PNG", transparency=None, icc_profile=None, exif=None)
    return stream.getvalue()


def image_key(source: ImageSource, root: Path | None = None) -> str:
    """A string equal for equal sources: the resolved path, or a digest of the bytes or pixels.

    Never looks into a file, so it does not tell whether ``open_image`` will succeed. A Pillow image whose file
    cannot be decoded raises RecordError as ``open_image`` does.
    """
    try:
        source = _unwrap(source)
        if isinstance(source, str | Path):
            return f"path:{locate_image(source, root)}"
    except RecordError as error:
        return f"{error.kind}:{source!r}"
    if isinstance(source, bytes):
        return f"bytes:{hashlib.blake2b(source, digest_size=16).hexdigest()}"
    try:
        content = source.tobytes() + bytes(source.getpalette("RGBA") or b"" if source.mode in ("P", "PA") else b"")
    except Exception as error:
        raise _decoding_error(error, "image") from error
    digest = hashlib.blake2b(content, digest_size=16, person=source.mode.encode()).hexdigest()
    return f"pixels:{source.mode}:{source.width}x{source.height}:{digest}"


def is_url(path: str | Path) -> bool:
    """Whether the text names something other than a local file (``http://``, ``file://``, ``data:`` ...)."""
    return _URL.match(str(path)) is not None


def locate_image(path: str | Path, root: Path | None = None) -> Path:
    """The resolved absolute path of an image, which need not exist.

    Raises:
        RecordError: missing_image (blank or impossible path), unsafe_path (a URL, or outside ``root``).
    """
    text = str(path)
    if not text.strip():
        raise RecordError("missing_image", "no image is given")
    if is_url(text):
        raise RecordError("unsafe_path", f"{_short(path)} is a URL; images are read from local files only")
    try:
        resolved = (Path(text) if root is None else root / text).resolve()
        inside = root is None or resolved.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character, a name too long
        raise RecordError("missing_image", f"{_short(path)} is no possible path: {error}") from error
    if not inside:
        raise RecordError("unsafe_path", f"{_short(path)} lies outside the image root {root}")
    return resolved


def _unwrap(source: ImageSource) -> str | Path | bytes | Image.Image:
    if isinstance(source, Mapping):
        content, path = source.get("bytes"), source.get("path")
        source = content if content is not None else path if path is not None else ""
    if not isinstance(source, str | Path | bytes | Image.Image):
        raise RecordError("unreadable_image", f"a {type(source).__name__} is not an image, a path or bytes")
    return source


def _content(source: str | Path | bytes, root: Path | None, limits: ImageLimits) -> tuple[bytes, str]:
    """Encoded bytes, and what messages call the image."""
    if isinstance(source, bytes):
        return source, "image"
    name = _short(source)
    return _read(locate_image(source, root), name, limits), name


def _read(path: Path, name: str, limits: ImageLimits) -> bytes:
    with _reading(path, name, limits) as file:
        return file.read()


@contextmanager
def _reading(path: Path, name: str, limits: ImageLimits) -> Iterator[BinaryIO]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise RecordError("unreadable_image", f"{name} is not a file")
        if status.st_size > limits.max_bytes:
            raise RecordError("image_too_large", f"{name} has {status.st_size} bytes; limit {limits.max_bytes}")
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError("missing_image", f"{name} does not exist") from error
    except OSError as error:
        kind = "missing_image" if "too long" in str(error) else "unreadable_image"
        raise RecordError(kind, f"{name} cannot be read: {error.strerror}") from error


def _identify(content: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """Parse the header only."""
    if not content:
        raise RecordError("empty_image", f"{name} is empty")
    if len(content) > limits.max_bytes:
        raise RecordError("image_too_large", f"{name} has {len(content)} bytes; limit {limits.max_bytes}")
    return _identified(BytesIO(content), name)


def _identified(file: BinaryIO, name: str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except Exception as error:  # decoders of broken files raise nearly anything
        raise _decoding_error(error, name) from error


def _decode(image: Image.Image, name: str, limits: ImageLimits) -> Image.Image:
    _check_size(image.size, name, limits)
    try:
        return _to_rgb(image)
    except Exception as error:
        raise _decoding_error(error, name) from error


def _check_size(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise RecordError("image_too_large", f"{name} has {width} x {height} pixels; limit {limits.max_pixels} in all")
    if min(width, height) < limits.min_side:
        raise RecordError("image_too_small", f"{name} has {width} x {height} pixels; each side needs {limits.min_side}")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise RecordError(
            "bad_aspect_ratio",
            f"{name} has {width} x {height} pixels; one side may be {limits.max_aspect_ratio:g} times the other",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    match image.mode:
        case mode if mode.startswith("I;16"):
            image = Image.fromarray(_16_TO_8_BIT[np.asarray(image)])
        case "I" | "F":
            image = Image.fromarray(_to_8_bit(np.asarray(image)))
        case "P" | "PA" | "RGBa":  # by way of RGBA: Pillow warns about a transparent palette turned into RGB
            image = image.convert("RGBA")
        case "La":
            image = image.convert("LA")
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey levels 0..255 of int32 or float32 values; NaN counts as the least value, infinities are clipped."""
    if values.dtype.kind == "i" and values.min() >= 0 and values.max() <= 65535:
        return _16_TO_8_BIT[values]
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    span = (high - low) or 1.0
    levels = (np.nan_to_num(values, nan=low, posinf=high, neginf=low).astype(np.float64) - low) * (255 / span)
    return np.rint(levels).astype(np.uint8)


def _decoding_error(error: Exception, name: str) -> RecordError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RecordError("image_too_large", f"{name}: {error}")
    if isinstance(error, Image.UnidentifiedImageError):
        return RecordError("unreadable_image", f"{name} is not an image of a known format ({', '.join(FORMATS)})")
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return RecordError("truncated_image", f"{name} is cut off: {error}")
    return RecordError("unreadable_image", f"{name} cannot be decoded: {type(error).__name__}: {error}")


def _short(path: str | Path) -> str:
    text = str(path)
    return repr(text if len(text) <= 160 else f"{text[:120]}...{text[-37:]}")
