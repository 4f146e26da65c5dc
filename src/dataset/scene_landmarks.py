"""The one big thing a made scene's relation refers to, and the smaller extras around it.

A landmark's unit frame spans about -0.5..0.5 across and -0.8..0.8 along y; an extra's about -0.5..0.5 both ways.
"""

from collections.abc import Callable

from src.dataset.scene_canvas import CIRCLE, RGB, Pen, between, blob, jitter, pick, ring, shade
from src.dataset.scene_sprites import GLASS, PAINT, flat_roof, roof

WATER: tuple[RGB, RGB, RGB] = ((18, 58, 92), (26, 78, 112), (40, 98, 128))
ASPHALT: tuple[RGB, RGB, RGB] = ((74, 76, 80), (88, 90, 94), (102, 103, 106))


def tree(p: Pen, x: float, y: float, r: float, snow: bool = False) -> None:
    """One round crown with a lit side."""
    base = {"autumn": (150, 92, 34), "winter": (92, 104, 96)}.get(p.sheet.season, (38, 86, 38))
    c = jitter(p.rng, base, 14)
    sx, sy = (-0.25 * r if p.lit(1, 0) < 1 else 0.25 * r), (-0.25 * r if p.lit(0, 1) < 1 else 0.25 * r)
    p.disc(x, y, r, shade(c, 0.8), 0.6 * r)
    p.disc(x + sx, y + sy, 0.66 * r, shade(c, 1.15))
    if snow:
        p.disc(x + sx, y + sy, 0.4 * r, (210, 216, 220))


def terminal(p: Pen, c: RGB) -> None:
    p.box(-0.26, -0.8, 0.22, 0.8, shade(c, 0.84), 0.16)
    p.box(-0.2, -0.75, 0.16, 0.75, c)
    for y in (-0.55, 0.0, 0.55):
        p.box(0.2, y - 0.07, 0.5, y + 0.07, shade(c, 0.9), 0.1)
        p.box(-0.14, y - 0.16, 0.1, y + 0.16, GLASS)
    p.line([(-0.02, -0.75), (-0.02, 0.75)], 0.03, shade(c, 0.7))


def hangar(p: Pen, c: RGB) -> None:
    p.box(-0.44, -0.7, 0.44, 0.7, c, 0.16)
    for i, f in enumerate((0.74, 0.86, 0.97, 1.06, 1.14, 1.14, 1.06, 0.97, 0.86, 0.74)):
        p.box(-0.44 + i * 0.088, -0.7, -0.352 + i * 0.088, 0.7, shade(c, f))
    for i in range(6):
        p.line([(-0.44, -0.56 + i * 0.22), (0.44, -0.56 + i * 0.22)], 0.012, shade(c, 0.72))
    p.box(-0.34, 0.66, 0.34, 0.72, GLASS)


def long_shed(p: Pen, c: RGB) -> None:
    q = p.at(0, 0, 1.5, 90)
    roof(q, c, 0.5, 0.27, 0.12)
    for i in range(7):
        q.line([(-0.45 + i * 0.15, -0.26), (-0.45 + i * 0.15, 0.26)], 0.014, shade(c, 0.74))


def crane(p: Pen, c: RGB) -> None:
    for y in (-0.34, 0.34):
        p.line([(-0.42, y), (0.3, y)], 0.13, shade(c, 0.74))
        p.line([(-0.42, y), (0.3, y)], 0.07, c)
    p.box(-0.5, -0.42, -0.36, 0.42, shade(c, 0.8), 0.2)
    p.box(0.22, -0.42, 0.34, 0.42, shade(c, 0.8), 0.2)
    p.box(-0.5, -0.1, 0.92, 0.1, shade(c, 1.05), 0.34)
    for i in range(12):
        x = -0.46 + i * 0.115
        p.line([(x, -0.09), (x + 0.1, 0.09)], 0.03, shade(c, 0.6))
    p.box(-0.16, -0.16, 0.06, 0.16, PAINT, 0.1)


def office(p: Pen, c: RGB) -> None:
    p.box(-0.42, -0.66, 0.42, 0.66, shade(c, 0.72), 0.4)
    p.box(-0.36, -0.6, 0.36, 0.6, c)
    p.box(-0.16, -0.34, 0.16, 0.34, GLASS)
    for _ in range(4):
        x, y = between(p.rng, -0.32, 0.2), pick(p.rng, (-0.52, -0.46, 0.42, 0.5))
        p.box(x, y - 0.05, x + 0.12, y + 0.05, shade(c, 0.66), 0.04)


def barn(p: Pen, c: RGB) -> None:
    p.poly(blob(p.rng, 0, 0, 0.6, 0.75, 0.1), (160, 140, 104), alpha=200)
    q = p.at(-0.04, -0.1, 0.95, 90)
    roof(q, c, 0.5, 0.32, 0.16)
    p.disc(0.28, 0.5, 0.13, shade(PAINT, 0.75), 0.3)
    p.disc(0.28, 0.5, 0.1, PAINT)


def farmhouse(p: Pen, c: RGB) -> None:
    p.poly(blob(p.rng, 0, 0, 0.56, 0.7, 0.1), (150, 150, 96), alpha=120)
    roof(p.at(0, -0.16, 0.8, 0), c, 0.5, 0.32, 0.14)
    roof(p.at(0.14, 0.22, 0.6, 90), c, 0.46, 0.36, 0.14)
    for x, y in ((-0.38, 0.36), (-0.36, 0.56), (0.42, -0.5)):
        tree(p, x, y, 0.13)


def lake(p: Pen, c: RGB) -> None:
    w = (24, 84, 132) if c[2] > c[1] else (44, 110, 84)
    shore = blob(p.rng, 0, 0, 0.46, 0.68)
    p.poly([(x * 1.07, y * 1.06) for x, y in shore], (172, 160, 120))
    p.textured(shore, [shade(w, 0.86), w, shade(w, 1.14)], "mid")


def church(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.74, 0.5, 0.74, (132, 148, 96))
    q = p.at(0, 0.04, 1.15, 90)
    roof(q, c, 0.5, 0.19, 0.16)
    roof(p.at(0, 0.14, 0.78, 0), c, 0.5, 0.2, 0.16)
    p.box(-0.15, -0.7, 0.15, -0.42, shade(c, 0.8), 0.5)
    p.poly([(-0.15, -0.7), (0.15, -0.7), (0, -0.56)], shade(c, 1.2))


def school(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.74, 0.5, 0.74, (158, 152, 140))
    for x0, y0, x1, y1 in ((-0.45, -0.68, -0.15, 0.68), (-0.15, -0.68, 0.42, -0.38), (-0.15, 0.38, 0.42, 0.68)):
        p.box(x0, y0, x1, y1, shade(c, 0.84), 0.12)
    for x0, y0, x1, y1 in ((-0.4, -0.63, -0.2, 0.63), (-0.2, -0.63, 0.37, -0.43), (-0.2, 0.43, 0.37, 0.63)):
        p.box(x0, y0, x1, y1, c)


def supermarket(p: Pen, c: RGB) -> None:
    p.box(-0.48, -0.78, 0.44, 0.78, shade(c, 0.78), 0.16)
    p.box(-0.43, -0.73, 0.39, 0.73, c)
    for i in range(8):
        y = -0.6 + 0.17 * i
        p.box(-0.3, y - 0.04, -0.1, y + 0.04, shade(c, 0.68), 0.03)
        p.box(0.06, y - 0.03, 0.2, y + 0.03, shade(c, 1.2))
    p.box(0.44, -0.2, 0.5, 0.2, shade(c, 0.6))


def stadium(p: Pen, c: RGB) -> None:
    p.poly(ring(0, 0, 0.56, 0.8, 6), shade(c, 0.7), 0.12)
    p.poly(ring(0, 0, 0.54, 0.78, 6), c)
    for d in range(0, 360, 12):
        u, v = CIRCLE[d]
        p.line([(0.38 * u, 0.56 * v), (0.53 * u, 0.77 * v)], 0.022, shade(c, 0.76))
    p.poly(ring(0, 0, 0.39, 0.6, 6), (186, 92, 66))
    p.poly(ring(0, 0, 0.32, 0.53, 6), (64, 134, 60))
    for i in range(4):
        p.box(-0.19, -0.4 + 0.2 * i, 0.19, -0.3 + 0.2 * i, (82, 154, 72))
    p.line([(-0.19, -0.4), (0.19, -0.4), (0.19, 0.4), (-0.19, 0.4), (-0.19, -0.4)], 0.02, PAINT)
    p.line([(-0.19, 0), (0.19, 0)], 0.02, PAINT)


def running_track(p: Pen, c: RGB) -> None:
    hull = [(0.47 * u, 0.44 * v + (0.34 if d < 18 else -0.34)) for d, (u, v) in enumerate(CIRCLE[::10])]
    p.poly(hull, c)
    for f in (0.92, 0.84):
        p.line([(x * f, y * (0.55 + 0.45 * f)) for x, y in [*hull, hull[0]]], 0.016, PAINT)
    p.poly([(x * 0.66, y * 0.84) for x, y in hull], (76, 140, 64))
    p.line([(-0.2, -0.42), (0.2, -0.42), (0.2, 0.42), (-0.2, 0.42), (-0.2, -0.42)], 0.02, PAINT)


def substation(p: Pen, c: RGB) -> None:
    p.box(-0.48, -0.7, 0.48, 0.7, (164, 160, 150))
    for y in (-0.5, -0.26):
        for x in (-0.3, -0.05, 0.2):
            p.box(x - 0.06, y - 0.06, x + 0.08, y + 0.06, (92, 98, 104), 0.1)
        p.line([(-0.4, y + 0.1), (0.4, y + 0.1)], 0.02, (60, 60, 64))
    flat_roof(p.at(0, 0.28, 0.8, 0), c, 0.5, 0.36, 0.16)


def oasis(p: Pen, c: RGB) -> None:
    shore = blob(p.rng, 0, 0, 0.32, 0.48)
    p.poly([(x * 1.5, y * 1.5) for x, y in shore], (104, 130, 58), alpha=190)
    p.textured(shore, WATER if c[2] > c[1] else ((30, 92, 62), (52, 122, 84)), "mid")
    for x, y in shore[::2]:
        tree(p, x * between(p.rng, 1.1, 1.4), y * between(p.rng, 1.1, 1.4), between(p.rng, 0.07, 0.12))


def rocky_hill(p: Pen, c: RGB) -> None:
    for k in range(5):
        f = 1 - 0.19 * k
        p.textured(blob(p.rng, 0.02 * k, 0.02 * k, 0.46 * f, 0.66 * f, 0.22),
                   [shade(c, 0.55 + 0.12 * k), shade(c, 0.85 + 0.12 * k)], "fine")  # fmt: skip


def hotel(p: Pen, c: RGB) -> None:
    for y in (-0.45, 0.0, 0.45):
        flat_roof(p.at(-0.08, y, 0.72, 0), c, 0.5, 0.22, 0.4)
    p.box(-0.46, -0.68, -0.26, 0.68, shade(c, 0.84), 0.2)
    p.box(-0.43, -0.64, -0.29, 0.64, shade(c, 0.96))


def lifeguard_tower(p: Pen, c: RGB) -> None:
    p.box(-0.14, 0.2, 0.14, 0.62, (150, 112, 74), 0.1)
    p.box(-0.36, -0.36, 0.36, 0.36, shade(c, 0.75), 0.5)
    tents = [(-0.36, -0.36), (0.36, -0.36), (0.36, 0.36), (-0.36, 0.36)]
    for i, (x, y) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0))):
        p.poly([tents[i], tents[(i + 1) % 4], (0, 0)], shade(c, p.lit(x, y) + 0.05 * (i % 2)))


def service_station(p: Pen, c: RGB) -> None:
    p.textured([(-0.5, -0.74), (0.5, -0.74), (0.5, 0.74), (-0.5, 0.74)], ASPHALT)
    p.box(-0.4, -0.64, 0.24, -0.22, shade(c, 0.8), 0.18)
    p.box(-0.35, -0.59, 0.19, -0.27, c)
    p.box(-0.3, 0.14, 0.3, 0.58, shade(c, 0.8), 0.14)
    p.box(-0.26, 0.18, 0.26, 0.54, shade(c, 1.05))


def roundabout(p: Pen, c: RGB) -> None:
    p.textured(ring(0, 0, 0.5, 0.5), ASPHALT)
    for d in range(0, 360, 20):
        u, v = CIRCLE[d]
        w, z = CIRCLE[(d + 8) % 360]
        p.line([(0.37 * u, 0.37 * v), (0.37 * w, 0.37 * z)], 0.02, PAINT)
    p.poly(ring(0, 0, 0.27, 0.27), shade(c, 0.8))
    p.poly(ring(0, 0, 0.23, 0.23), c)


def station(p: Pen, c: RGB) -> None:
    p.box(-0.5, -0.8, 0.4, 0.8, (170, 166, 158))
    roof(p.at(-0.1, 0, 1.4, 90), c, 0.5, 0.2, 0.14)
    for y in (-0.5, 0.0, 0.5):
        p.box(0.22, y - 0.16, 0.36, y + 0.16, shade(c, 0.8), 0.06)


def gymnasium(p: Pen, c: RGB) -> None:
    p.box(-0.46, -0.66, 0.46, 0.66, shade(c, 0.7), 0.2)
    for i in range(11):
        f = 1.16 - 0.06 * abs(i - 5)
        p.box(-0.42, -0.62 + i * 0.113, 0.42, -0.5 + i * 0.113, shade(c, f))
    p.line([(0, -0.62), (0, 0.62)], 0.05, shade(c, 0.76))


def arena(p: Pen, c: RGB) -> None:
    p.disc(0, 0, 0.56, shade(c, 0.7), 0.24)
    p.disc(0, 0, 0.52, c)
    for d in range(0, 360, 15):
        u, v = CIRCLE[d]
        p.line([(0.12 * u, 0.12 * v), (0.51 * u, 0.51 * v)], 0.018, shade(c, 0.78))
    p.disc(0, 0, 0.3, shade(c, 1.1))
    p.disc(0, 0, 0.13, GLASS)


def cooling_tower(p: Pen, c: RGB) -> None:
    p.disc(0, 0, 0.48, shade(c, 0.66), 0.5)
    p.disc(0, 0, 0.42, c)
    p.disc(0, 0, 0.3, shade(c, 0.5))
    p.disc(0.03, 0.03, 0.24, (48, 50, 54))


def bridge(p: Pen, c: RGB) -> None:
    p.box(-0.54, -0.16, 0.54, 0.16, c, 0.14)
    p.box(-0.54, -0.1, 0.54, 0.1, (92, 94, 98))
    for i in range(7):
        p.box(-0.5 + i * 0.15, -0.008, -0.42 + i * 0.15, 0.008, PAINT)
    for x in (-0.3, 0.3):
        for y in (-0.15, 0.15):
            p.box(x - 0.05, y - 0.05, x + 0.05, y + 0.05, shade(c, 0.8), 0.2)


LANDMARKS: dict[str, Callable[[Pen, RGB], None]] = {
    "terminal": terminal, "hangar": hangar, "warehouse": long_shed, "crane": crane, "office building": office,
    "barn": barn, "farmhouse": farmhouse, "lake": lake, "church": church, "school": school,
    "supermarket": supermarket, "stadium": stadium, "running track": running_track, "substation": substation,
    "oasis": oasis, "rocky hill": rocky_hill, "hotel": hotel, "lifeguard tower": lifeguard_tower,
    "service station": service_station, "roundabout": roundabout, "station": station, "engine shed": hangar,
    "gymnasium": gymnasium, "cooling tower": cooling_tower, "bridge": bridge, "arena": arena,
}  # fmt: skip
