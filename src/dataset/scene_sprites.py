"""The things that are counted in made scenes, each drawn in a unit frame: x from -0.5 to 0.5 along its length."""

from collections.abc import Callable

from src.dataset.scene_canvas import CIRCLE, RGB, Pen, between, blob, pick, ring, shade

GLASS: RGB = (40, 48, 60)
PAINT: RGB = (236, 236, 230)


def roof(p: Pen, colour: RGB, x: float, y: float, lift: float = 0.12) -> None:
    """A gabled roof of half-length `x` and half-width `y`, its ridge along the x axis."""
    p.box(-x, -y, x, y, colour, lift)
    p.box(-x, -y, x, 0, shade(colour, p.lit(0, -1)))
    p.box(-x, 0, x, y, shade(colour, p.lit(0, 1)))
    p.line([(-x, 0), (x, 0)], 0.03, shade(colour, 1.25))


def flat_roof(p: Pen, colour: RGB, x: float, y: float, lift: float = 0.16) -> None:
    """A flat roof with a rim and some machinery."""
    p.box(-x, -y, x, y, shade(colour, 0.78), lift)
    p.box(-x + 0.035, -y + 0.035, x - 0.035, y - 0.035, colour)
    for _ in range(3):
        u, v = between(p.rng, -x * 0.7, x * 0.6), between(p.rng, -y * 0.7, y * 0.55)
        p.box(u, v, u + 0.09, v + 0.07, shade(colour, pick(p.rng, (0.72, 1.16))), 0.03)


def plane(p: Pen, c: RGB) -> None:
    dark = shade(c, 0.86)
    p.poly([(0.1, 0), (-0.16, 0.47), (-0.25, 0.47), (-0.1, 0), (-0.25, -0.47), (-0.16, -0.47)], dark, 0.1)
    p.poly([(-0.36, 0), (-0.46, 0.18), (-0.51, 0.18), (-0.46, 0), (-0.51, -0.18), (-0.46, -0.18)], dark, 0.08)
    p.poly([(0.5, 0), (0.42, 0.06), (-0.34, 0.06), (-0.5, 0), (-0.34, -0.06), (0.42, -0.06)], c, 0.08)
    p.poly([(0.46, 0), (0.41, 0.04), (0.38, 0), (0.41, -0.04)], GLASS)
    for y in (-0.2, 0.2):
        p.box(-0.06, y - 0.035, 0.06, y + 0.035, shade(c, 0.7))


def helicopter(p: Pen, c: RGB) -> None:
    p.line([(-0.05, 0), (-0.5, 0)], 0.07, shade(c, 0.85))
    p.box(-0.5, -0.12, -0.43, 0.12, c)
    p.poly(ring(0.08, 0, 0.27, 0.17, 20), c, 0.1)
    p.poly(ring(0.22, 0, 0.11, 0.11, 30), GLASS)
    p.disc(0.06, 0, 0.4, (225, 228, 232), alpha=60)
    for d in (35, 125):
        u, v = CIRCLE[d][0] * 0.42, CIRCLE[d][1] * 0.42
        p.line([(0.06 - u, -v), (0.06 + u, v)], 0.045, (60, 62, 66))


def truck(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.17, 0.22, 0.17, c, 0.14)
    p.box(-0.46, -0.13, 0.18, 0.13, shade(c, 1.08))
    p.box(0.26, -0.16, 0.5, 0.16, shade(c, 0.82), 0.1)
    p.box(0.42, -0.13, 0.47, 0.13, GLASS)


def bus(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.15, 0.5, 0.15, c, 0.14)
    p.box(0.43, -0.13, 0.49, 0.13, GLASS)
    for x in (-0.26, 0.1):
        p.box(x - 0.11, -0.08, x + 0.11, 0.08, (70, 74, 80) if min(c) > 180 else PAINT)


def car(p: Pen, c: RGB) -> None:
    p.poly([(-0.5, -0.2), (0.4, -0.22), (0.5, -0.14), (0.5, 0.14), (0.4, 0.22), (-0.5, 0.2)], c, 0.14)
    p.poly([(0.1, -0.17), (0.24, -0.19), (0.24, 0.19), (0.1, 0.17)], GLASS)
    p.box(-0.4, -0.17, -0.29, 0.17, GLASS)


def ship(p: Pen, c: RGB) -> None:
    hull = [(0.5, 0), (0.34, 0.13), (-0.44, 0.14), (-0.5, 0.09), (-0.5, -0.09), (-0.44, -0.14), (0.34, -0.13)]
    p.poly([(-0.5, 0), (-0.66, 0.1), (-0.6, 0), (-0.66, -0.1)], (206, 220, 224), alpha=120)
    p.poly(hull, shade(c, 0.8), 0.07)
    p.poly([(x * 0.92, y * 0.8) for x, y in hull], c)
    for x in (-0.12, 0.04, 0.2):
        p.box(x - 0.055, -0.075, x + 0.055, 0.075, shade(c, 0.66))
    p.box(-0.4, -0.1, -0.24, 0.1, shade(PAINT, 0.94), 0.08)


def sailing_boat(p: Pen, c: RGB) -> None:
    p.poly([(0.5, 0), (0.2, 0.12), (-0.4, 0.1), (-0.4, -0.1), (0.2, -0.12)], (150, 104, 62), 0.05)
    p.poly([(0.44, 0.02), (-0.36, 0.04), (-0.1, 0.36)], c, 0.1)
    p.poly([(0.44, 0.02), (-0.1, 0.04), (-0.04, 0.24)], shade(c, 0.84))


def storage_tank(p: Pen, c: RGB) -> None:
    p.disc(0, 0, 0.5, shade(c, 0.62), 0.26)
    p.disc(0, 0, 0.46, c)
    p.disc(0, 0, 0.34, shade(c, 0.93))
    p.line([(0, 0), (0.44, 0.08)], 0.05, shade(c, 0.7))
    p.disc(0, 0, 0.07, shade(c, 0.7))


def container(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.2, 0.5, 0.2, c, 0.16)
    for i in range(9):
        p.line([(-0.44 + i * 0.11, -0.18), (-0.44 + i * 0.11, 0.18)], 0.03, shade(c, 0.8))


def circular_field(p: Pen, c: RGB) -> None:
    c = shade(c, 0.88)
    p.textured(ring(0, 0, 0.5, 0.5), [shade(c, 0.82), c, shade(c, 1.14)], "mid")
    for i in (0.4, 0.3, 0.2):
        p.poly(ring(0, 0, i, i), shade(c, 0.8), alpha=26)
    x, y = pick(p.rng, CIRCLE)
    p.line([(0, 0), (x * 0.49, y * 0.49)], 0.022, (226, 224, 214))
    p.disc(0, 0, 0.03, (60, 60, 52))


def square_field(p: Pen, c: RGB) -> None:
    c = shade(c, 0.9)
    p.textured([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)], [shade(c, 0.86), c, shade(c, 1.12)], "mid")
    for i in range(9):
        p.line([(-0.5, -0.44 + i * 0.11), (0.5, -0.44 + i * 0.11)], 0.022, shade(c, 0.84))


def tractor(p: Pen, c: RGB) -> None:
    for x, r in ((-0.28, 0.2), (0.3, 0.13)):
        for y in (-0.27, 0.27):
            p.box(x - r, y - 0.09, x + r, y + 0.09, (34, 32, 32), 0.06)
    p.box(-0.5, -0.2, 0.1, 0.2, c, 0.14)
    p.box(0.0, -0.13, 0.5, 0.13, shade(c, 0.9), 0.1)
    p.box(-0.34, -0.13, -0.06, 0.13, shade(c, 1.2))
    p.box(-0.06, -0.14, 0.02, 0.14, GLASS)


def hay_bale(p: Pen, c: RGB) -> None:
    p.disc(0, 0, 0.46, shade(c, 0.8), 0.2)
    for r, f in ((0.4, 1.0), (0.27, 0.84), (0.2, 1.04), (0.1, 0.8)):
        p.disc(0, 0, r, shade(c, f))


def cabin(p: Pen, c: RGB) -> None:
    p.poly(ring(0, 0, 0.7, 0.58, 20), (150, 136, 96), alpha=150)
    roof(p, c, 0.46, 0.36)
    p.box(0.18, -0.26, 0.3, -0.12, (96, 84, 78), 0.08)


def house(p: Pen, c: RGB) -> None:
    roof(p, c, 0.5, 0.34)
    if p.rng.integers(2):
        q = p.at(0.16, 0.3, 0.62, 90)
        roof(q, c, 0.34, 0.3, 0.06)
        p.poly([(-0.05, 0.48), (0.37, 0.48), (0.37, 0.5), (-0.05, 0.5)], shade(c, 0.9))
    p.box(-0.34, -0.2, -0.22, -0.06, (110, 92, 86), 0.08)


def tent(p: Pen, c: RGB) -> None:
    corners = [(-0.45, -0.38), (0.45, -0.38), (0.45, 0.38), (-0.45, 0.38)]
    p.poly(corners, c, 0.12)
    for i, (x, y) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0))):
        p.poly([corners[i], corners[(i + 1) % 4], (0, 0)], shade(c, p.lit(x, y) + 0.06 * (i % 2)))


def apartment_block(p: Pen, c: RGB) -> None:
    flat_roof(p, c, 0.5, 0.3, 0.32)
    p.box(-0.07, -0.11, 0.07, 0.11, shade(c, 0.7), 0.06)


def swimming_pool(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.36, 0.5, 0.36, (226, 220, 208), 0.02)
    water = (60, 170, 226) if c[2] > c[1] else (64, 190, 132)
    p.box(-0.4, -0.26, 0.4, 0.26, water)
    for y in (-0.09, 0.09):
        p.line([(-0.38, y), (0.38, y)], 0.025, shade(water, 1.3))


def train(p: Pen, c: RGB) -> None:
    for x0, x1 in ((-0.5, -0.18), (-0.165, 0.155), (0.17, 0.5)):
        p.box(x0, -0.06, x1, 0.06, c, 0.06)
        p.line([(x0 + 0.015, 0), (x1 - 0.015, 0)], 0.04, shade(c, 1.18))
        p.box(x0 + 0.05, -0.025, x0 + 0.1, 0.025, shade(c, 0.66))
    p.box(0.455, -0.05, 0.485, 0.05, GLASS)


def locomotive(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.15, 0.46, 0.15, c, 0.12)
    p.box(0.3, -0.12, 0.36, 0.12, GLASS)
    p.box(-0.42, -0.07, 0.22, 0.07, shade(c, 0.72))
    for x in (-0.3, -0.1, 0.1):
        p.disc(x, 0, 0.05, (54, 54, 58))


def tennis_court(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.32, 0.5, 0.32, shade(c, 0.72))
    p.box(-0.38, -0.2, 0.38, 0.2, c)
    for x0, y0, x1, y1 in ((-0.38, -0.2, 0.38, -0.2), (-0.38, 0.2, 0.38, 0.2), (-0.38, -0.2, -0.38, 0.2)):
        p.line([(x0, y0), (x1, y1)], 0.028, PAINT)
    for x0, y0, x1, y1 in ((0.38, -0.2, 0.38, 0.2), (-0.38, -0.14, 0.38, -0.14), (-0.38, 0.14, 0.38, 0.14)):
        p.line([(x0, y0), (x1, y1)], 0.028, PAINT)
    p.line([(-0.2, 0), (0.2, 0)], 0.028, PAINT)
    p.line([(0, -0.26), (0, 0.26)], 0.035, (44, 46, 48))


def basketball_court(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.29, 0.5, 0.29, c)
    key = shade(c, 0.62)
    for s in (-1, 1):
        p.disc(s * 0.3, 0, 0.13, PAINT)
        p.disc(s * 0.3, 0, 0.1, c)
        p.poly([(s * 0.5, -0.1), (s * 0.3, -0.1), (s * 0.3, 0.1), (s * 0.5, 0.1)], key)
    p.line([(0, -0.29), (0, 0.29)], 0.03, PAINT)
    p.disc(0, 0, 0.12, PAINT)
    p.disc(0, 0, 0.09, key)
    p.line([(-0.5, -0.29), (0.5, -0.29), (0.5, 0.29), (-0.5, 0.29), (-0.5, -0.29)], 0.03, PAINT)


def umbrella(p: Pen, c: RGB) -> None:
    p.box(0.1, -0.12, 0.62, 0.12, (236, 226, 206))
    p.disc(0, 0, 0.44, shade(c, 0.95), 0.3)
    for d in range(0, 360, 90):
        p.poly(
            [(0, 0)] + [(0.44 * CIRCLE[(d + t) % 360][0], 0.44 * CIRCLE[(d + t) % 360][1]) for t in (0, 22, 45)],
            shade(c, 1.2),
        )
    p.disc(0, 0, 0.05, PAINT)


def warehouse(p: Pen, c: RGB) -> None:
    roof(p, c, 0.5, 0.3, 0.18)
    for i in range(6):
        p.line([(-0.42 + i * 0.168, -0.28), (-0.42 + i * 0.168, 0.28)], 0.014, shade(c, 0.76))


def wind_turbine(p: Pen, c: RGB) -> None:
    p.disc(0.0, 0.0, 0.17, (176, 168, 148))
    start = int(p.rng.integers(120))
    dx, dy = p.sheet.sun
    foot = p.pixels([(0, 0)])[0]
    reach = 0.55 * p.unit
    far = (round(foot[0] + dx * reach), round(foot[1] + dy * reach))
    p.sheet.draw.line([foot, far], (12, 16, 28, 120), max(2, round(0.05 * p.unit)))
    for shift in (far, None):
        for k in range(3):
            u, v = CIRCLE[(start + 120 * k) % 360]
            points = [(-0.06 * v, 0.06 * u), (0.5 * u, 0.5 * v), (0.06 * v, -0.06 * u)]
            if shift:
                places = [(x - foot[0] + far[0], y - foot[1] + far[1]) for x, y in p.pixels(points)]
                p.sheet.draw.polygon(places, (12, 16, 28, 100))
            else:
                p.poly(points, c)
    p.disc(0, 0, 0.075, shade(c, 0.85))


def hut(p: Pen, c: RGB) -> None:
    p.box(-0.62, -0.52, 0.62, 0.52, (168, 158, 136))
    flat_roof(p, c, 0.46, 0.36, 0.2)


def islet(p: Pen, c: RGB) -> None:
    shore = blob(p.rng, 0, 0, 0.42, 0.34, 0.14)
    p.poly([(x * 1.16, y * 1.2) for x, y in shore], (232, 222, 186))
    c = shade(c, 0.9)
    p.textured(shore, [shade(c, 0.8), c, shade(c, 1.2)])


SPRITES: dict[str, Callable[[Pen, RGB], None]] = {
    "plane": plane, "helicopter": helicopter, "truck": truck, "bus": bus, "car": car, "ship": ship,
    "sailing boat": sailing_boat, "storage tank": storage_tank, "container": container,
    "circular field": circular_field, "square field": square_field, "tractor": tractor, "hay bale": hay_bale,
    "cabin": cabin, "house": house, "tent": tent, "apartment block": apartment_block,
    "swimming pool": swimming_pool, "train": train, "locomotive": locomotive, "tennis court": tennis_court,
    "basketball court": basketball_court, "umbrella": umbrella, "warehouse": warehouse,
    "wind turbine": wind_turbine, "hut": hut, "island": islet,
}  # fmt: skip
