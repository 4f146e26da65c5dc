"""The drawing surface of made scenes: a similarity-mapped pen on a 2x sheet, noise textures, and the sensor.

Pixels are the same on every machine: coordinates are rounded to whole pixels before Pillow draws them, angles come
from a table rounded to six decimals, and the noise is made of integers.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

T = TypeVar("T")
RGB = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, RGB] = {
    "red": (200, 42, 40),
    "blue": (36, 92, 200),
    "white": (242, 242, 238),
    "yellow": (242, 210, 40),
    "green": (34, 146, 66),
    "grey": (126, 129, 134),
    "orange": (242, 130, 26),
    "brown": (120, 74, 40),
}

# (cos, sin) by whole degree; rounding makes the last bit of the C library's functions irrelevant.
CIRCLE: tuple[Point, ...] = tuple(
    (round(math.cos(math.radians(d)), 6), round(math.sin(math.radians(d)), 6)) for d in range(360)
)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, each equally likely."""
    return options[int(rng.integers(len(options)))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high) on a grid of 1,024 steps."""
    return low + (high - low) * int(rng.integers(1024)) / 1024


def shade(colour: RGB, factor: float) -> RGB:
    """`colour` made darker (factor below 1) or lighter, each channel clipped to 0..255."""
    r, g, b = (max(0, min(255, int(c * factor))) for c in colour)
    return r, g, b


def jitter(rng: np.random.Generator, colour: RGB, amount: int = 10) -> RGB:
    """`colour` with each channel moved by up to `amount`."""
    r, g, b = (max(0, min(255, c + int(rng.integers(-amount, amount + 1)))) for c in colour)
    return r, g, b


@lru_cache(maxsize=16)
def noise_tile(side: int, grain: str) -> Image.Image:
    """Grey noise of several octaves, about 1.75 * `side` square; `grain` is "fine", "mid" or "broad"."""
    cells = {"fine": (48, 96, 192, 384), "mid": (12, 24, 48, 192, 384), "broad": (3, 6, 12, 48, 256)}[grain]
    weights = {"fine": (3, 4, 4, 4), "mid": (5, 4, 3, 2, 3), "broad": (7, 5, 3, 2, 2)}[grain]
    rng = np.random.Generator(np.random.PCG64(len(grain)))
    width = side * 7 // 4
    total = np.zeros((width, width), np.int32)
    for n, weight in zip(cells, weights, strict=True):
        lattice = Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8))
        total += weight * (np.asarray(lattice.resize((width, width), Image.Resampling.BICUBIC), np.int32) - 128)
    low, high = np.percentile(total, [1, 99], method="lower")
    return Image.fromarray(np.clip((total - low) * 255 // (high - low), 0, 255).astype(np.uint8))


def palette(stops: Sequence[RGB]) -> bytes:
    """A 256-entry RGB palette running evenly through `stops`."""
    steps = np.arange(256) * (len(stops) - 1)
    left = np.minimum(steps // 255, len(stops) - 2)
    part = (steps - left * 255)[:, None]
    table = np.asarray(stops, np.int64)
    return ((table[left] * (255 - part) + table[left + 1] * part) // 255).astype(np.uint8).tobytes()


class Sheet:
    """The image being drawn, at twice the final size, with the sun and the season all pens share."""

    def __init__(self, size: int, rng: np.random.Generator, season: str) -> None:
        self.side = 2 * size
        self.rng = rng
        self.season = season
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        cos, sin = pick(rng, CIRCLE)
        length = between(rng, 0.5, 1.1)
        self.sun = (cos * length, sin * length)  # where shadows fall, per unit of height

    def texture(self, box: tuple[int, int, int, int], stops: Sequence[RGB], grain: str) -> Image.Image:
        """An RGB patch of coloured noise covering `box`."""
        tile = noise_tile(self.side, grain)
        width, height = box[2] - box[0], box[3] - box[1]
        x = int(self.rng.integers(tile.width - width + 1))
        y = int(self.rng.integers(tile.height - height + 1))
        patch = tile.crop((x, y, x + width, y + height))
        patch.putpalette(palette(stops))
        return patch.convert("RGB")


class Pen:
    """Draws in its own frame: (x, y) goes to pixel (a x - s b y + e, b x + s a y + f), s being -1 when mirrored.

    `bounds` is the pixel box of everything drawn with this pen and the pens made from it (shadows left out), on the
    2x sheet; pens made from the sheet's own pen each have their own.
    """

    def __init__(
        self, sheet: Sheet, a: float, b: float, e: float, f: float, mirrored: bool, bounds: list[int] | None
    ) -> None:
        self.sheet, self.rng, self.mirror = sheet, sheet.rng, -1.0 if mirrored else 1.0
        self.a, self.b, self.e, self.f = a, b, e, f
        self.unit = math.sqrt(a * a + b * b)
        self.root = bounds is None
        self.bounds = [10**6, 10**6, -(10**6), -(10**6)] if bounds is None else bounds

    @classmethod
    def over(cls, sheet: Sheet, quarter: int, mirrored: bool, tilt: int) -> "Pen":
        """A pen whose unit square fills the sheet, turned by `quarter` * 90 + `tilt` degrees about the middle."""
        cos, sin = CIRCLE[(90 * quarter + tilt) % 360]
        a, b, s = cos * sheet.side, sin * sheet.side, -1 if mirrored else 1
        half = sheet.side / 2
        return cls(sheet, a, b, half - (a - s * b) / 2, half - (b + s * a) / 2, mirrored, None)

    def at(self, x: float, y: float, size: float, heading: int = 0) -> "Pen":
        """A pen centred on (x, y) whose unit is `size` and whose x axis points `heading` degrees off this one's."""
        cos, sin = CIRCLE[heading % 360]
        s = self.mirror
        a = (self.a * cos - s * self.b * sin) * size
        b = (self.b * cos + s * self.a * sin) * size
        e = self.a * x - s * self.b * y + self.e
        f = self.b * x + s * self.a * y + self.f
        bounds = [10**6, 10**6, -(10**6), -(10**6)] if self.root else self.bounds
        return Pen(self.sheet, a, b, e, f, s < 0, bounds)

    def pixels(self, points: Sequence[Point]) -> list[tuple[int, int]]:
        """The whole-pixel places of `points`."""
        a, b, s = self.a, self.b, self.mirror
        return [(round(a * x - s * b * y + self.e), round(b * x + s * a * y + self.f)) for x, y in points]

    def _mark(self, places: Sequence[tuple[int, int]]) -> None:
        box = self.bounds
        xs, ys = [p[0] for p in places], [p[1] for p in places]
        box[:] = min(box[0], *xs), min(box[1], *ys), max(box[2], *xs), max(box[3], *ys)

    def _shadow(self, lift: float) -> tuple[int, int]:
        dx, dy = self.sheet.sun
        return round(dx * lift * self.unit), round(dy * lift * self.unit)

    def poly(self, points: Sequence[Point], colour: RGB, lift: float = 0.0, alpha: int = 255) -> None:
        """A filled polygon; `lift` is its height in this pen's units, for the shadow."""
        places = self.pixels(points)
        if lift:
            dx, dy = self._shadow(lift)
            self.sheet.draw.polygon([(x + dx, y + dy) for x, y in places], (12, 16, 28, 110))
        self.sheet.draw.polygon(places, (*colour, alpha))
        self._mark(places)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB, lift: float = 0.0) -> None:
        """A filled rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, lift)

    def disc(self, x: float, y: float, radius: float, colour: RGB, lift: float = 0.0, alpha: int = 255) -> None:
        """A filled circle."""
        ((px, py),) = self.pixels([(x, y)])
        r = max(1, round(radius * self.unit))
        if lift:
            dx, dy = self._shadow(lift)
            self.sheet.draw.ellipse((px + dx - r, py + dy - r, px + dx + r, py + dy + r), (12, 16, 28, 110))
        self.sheet.draw.ellipse((px - r, py - r, px + r, py + r), (*colour, alpha))
        self._mark([(px - r, py - r), (px + r, py + r)])

    def line(self, points: Sequence[Point], width: float, colour: RGB) -> None:
        """A line of square-ended pieces with round joints, `width` wide in this pen's units."""
        wide = max(1, round(width * self.unit))
        places = self.pixels(points)
        self.sheet.draw.line(places, colour, wide)
        for x, y in places[1:-1] if wide > 3 else ():
            r = wide // 2
            self.sheet.draw.ellipse((x - r, y - r, x + r, y + r), colour)
        self._mark(places)

    def textured(self, points: Sequence[Point], stops: Sequence[RGB], grain: str = "fine") -> None:
        """A polygon filled with coloured noise."""
        places = self.pixels(points)
        side = self.sheet.side
        left, top = (max(0, min(p[i] for p in places)) for i in (0, 1))
        right, bottom = (min(side, max(p[i] for p in places) + 1) for i in (0, 1))
        self._mark(places)
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in places], 255)
        patch = self.sheet.texture((left, top, right, bottom), stops, grain)
        self.sheet.image.paste(patch, (left, top), mask)

    def lit(self, x: float, y: float) -> float:
        """Brightness of a slope facing local (x, y): above 1 towards the sun, below 1 away from it."""
        px = self.a * x - self.mirror * self.b * y
        py = self.b * x + self.mirror * self.a * y
        return 0.8 if px * self.sheet.sun[0] + py * self.sheet.sun[1] > 0 else 1.1


def ring(x: float, y: float, rx: float, ry: float, step: int = 10) -> list[Point]:
    """An ellipse as a polygon."""
    return [(x + rx * CIRCLE[d][0], y + ry * CIRCLE[d][1]) for d in range(0, 360, step)]


def blob(rng: np.random.Generator, x: float, y: float, rx: float, ry: float, rough: float = 0.18) -> list[Point]:
    """An irregular closed shore around (x, y)."""
    waves = [(n, int(rng.integers(360)), between(rng, 0.2, 1.0) * rough * 2 / n) for n in (2, 3, 4, 5)]
    points = []
    for d in range(0, 360, 12):
        r = 1 + sum(size * CIRCLE[(n * d + start) % 360][0] for n, start, size in waves)
        points.append((x + rx * r * CIRCLE[d][0], y + ry * r * CIRCLE[d][1]))
    return points


@lru_cache(maxsize=4)
def _grain(size: int) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(7))
    shape = (2 * size, 2 * size, 3)
    return rng.integers(-32, 33, (3, *shape), dtype=np.int16).sum(0).astype(np.float32) / 32


def expose(sheet: Sheet, haze: int, gain: int, warmth: int, noise: int, blur: int) -> Image.Image:
    """The finished image: reduced by two, blurred, lit, hazed and given sensor noise.

    `haze` 0..40 is the share in percent of white veil, `gain` the brightness in percent, `warmth` -8..8 moves red
    against blue, `noise` 0..6 is the sensor noise in grey levels, `blur` the number of passes of a 1-2-1 filter.
    """
    size, rng = sheet.side // 2, sheet.rng
    pixels = np.asarray(sheet.image.reduce(2), np.float32)
    for _ in range(blur):
        for axis in (0, 1):
            ends = np.pad(pixels, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
            before, after = (ends.take(range(k, k + size), axis) for k in (0, 2))
            pixels = (before + 2 * pixels + after) / np.float32(4)
    veil = np.float32(haze / 100)
    scale = np.array([gain + warmth, gain, gain - warmth], np.float32) / np.float32(100) * (1 - veil)
    slope_x, slope_y = (int(rng.integers(-8, 9)) for _ in range(2))
    ramp = np.arange(size) * 256 // size - 128
    tile = noise_tile(sheet.side, "broad")
    x, y = (int(rng.integers(tile.width - size)) for _ in range(2))
    clouds = np.asarray(tile.crop((x, y, x + size, y + size)), np.int32) - 128
    light = (ramp[:, None] * slope_y + ramp[None, :] * slope_x + clouds * 7).astype(np.float32) / np.float32(12800) + 1
    y, x = (int(rng.integers(size)) for _ in range(2))
    grain = _grain(size)[y : y + size, x : x + size]
    out = pixels * scale * light[:, :, None] + veil * np.float32(200) + grain * np.float32(noise)
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))
