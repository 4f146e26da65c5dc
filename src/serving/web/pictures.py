"""Pictures on their way to the page: uploads within limits, boxes drawn, and small copies that travel in the page."""

import base64
import io
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from src.dataset.images import ImageLimits, open_image
from src.dataset.scenes import make_scene, png_bytes
from src.errors import RecordError
from src.rewards.boxes import Box, parse_boxes

MAX_UPLOAD_BYTES = 20 * 2**20
UPLOAD_LIMITS = ImageLimits(max_pixels=25_000_000, max_bytes=MAX_UPLOAD_BYTES)
SHOWN_SIDE = 448  # pixels of the copy that the page shows
EXAMPLES = 200
MAX_BOXES = 64  # that are drawn
BOX_UNITS = 1000  # Qwen2-VL gives corners in thousandths of width and height
COLOURS = ("#e4572e", "#2f9c95", "#f2b134", "#7768ae", "#3f6fb5", "#b5446e")


def open_upload(path: str | Path) -> Image.Image:
    """An uploaded image as RGB.

    Raises:
        RecordError: with a sentence for the one who uploaded it, without the path at which it lies here.
    """
    try:
        return open_image(path, limits=UPLOAD_LIMITS)
    except RecordError as error:
        sentence = str(error).replace(repr(str(path)), Path(path).name)
        raise RecordError(error.kind, f"This picture cannot be used: {sentence}") from error


def answer_boxes(text: str) -> list[Box]:
    """The boxes of a model's final answer, in thousandths of the image's sides."""
    return parse_boxes(text)


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with numbered frames around what ``boxes`` name, in thousandths of its sides; outside of it is cut off.

    At most ``MAX_BOXES`` are drawn.
    """
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    size = max(11, min(image.size) // 22)
    font, line = ImageFont.load_default(size), max(3, min(image.size) // 150)
    for number, box in enumerate(boxes[:MAX_BOXES]):
        x1, x2 = (round(min(max(x, 0), BOX_UNITS) * (image.width - 1) / BOX_UNITS) for x in (box[0], box[2]))
        y1, y2 = (round(min(max(y, 0), BOX_UNITS) * (image.height - 1) / BOX_UNITS) for y in (box[1], box[3]))
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        if len(boxes) > 1:
            label = str(number + 1)
            width = round(pen.textlength(label, font)) + 6
            top = y1 - size - 3 if y1 > size + 3 else y1
            pen.rectangle((x1, top, x1 + width, top + size + 3), fill=colour)
            pen.text((x1 + 3, top + 1), label, "white", font)
    return drawn


def example_picture() -> str:
    """The path of one of ``EXAMPLES`` made scenes, in a folder that goes with the process."""
    scene = make_scene(random.randrange(EXAMPLES))
    path = Path(_example_folder().name, f"{scene.kind.replace(' ', '_')}_{scene.seed}.png")
    path.write_bytes(png_bytes(scene.image))
    return str(path)


@cache
def _example_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="scenes-")


def small_copy(image: Image.Image, side: int = SHOWN_SIDE) -> Image.Image:
    """The image, its longer side ``side`` pixels: shrunk to it, or enlarged at most thrice."""
    scale = min(3.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG in a data URI: nothing on the page is fetched by a path of this machine."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
