"""What lies under made scenes: one ground per kind, drawn on the whole sheet before anything that is counted.

The frame is the unit square with the landmark around (0.19, 0.36), counted things around x 0.58 and 0.84 in rows at
y 0.13, 0.36 and 0.59, and extras along y 0.87; grounds overshoot the square because the frame may be tilted.
"""

from src.dataset.scene_canvas import RGB, Pen, between, jitter, pick, ring, shade
from src.dataset.scene_landmarks import ASPHALT, WATER, tree
from src.dataset.scene_sprites import PAINT

PLANTS: dict[str, tuple[RGB, ...]] = {
    "summer": ((74, 106, 54), (97, 128, 68), (122, 148, 84)),
    "autumn": ((146, 122, 68), (170, 146, 86), (186, 166, 108)),
    "winter": ((196, 202, 206), (216, 220, 222), (232, 234, 236)),
}
CONCRETE: tuple[RGB, ...] = ((150, 148, 142), (166, 164, 158), (182, 180, 174))
GRAVEL: tuple[RGB, ...] = ((134, 124, 108), (156, 146, 128), (178, 168, 148))
SAND: tuple[RGB, ...] = ((196, 166, 116), (214, 186, 138), (230, 206, 162))
ROWS = (0.13, 0.36, 0.59)


def cover(p: Pen, stops: tuple[RGB, ...], grain: str = "mid") -> None:
    """The whole sheet in one texture, its tint a little different each time."""
    common = int(p.rng.integers(-10, 11))
    change = [common + int(p.rng.integers(-4, 5)) for _ in range(3)]
    tinted = [(max(0, r + change[0]), max(0, g + change[1]), max(0, b + change[2])) for r, g, b in stops]
    side = p.sheet.side
    p.sheet.image.paste(p.sheet.texture((0, 0, side, side), tinted, grain), (0, 0))


def plants(p: Pen) -> tuple[RGB, ...]:
    return PLANTS[p.sheet.season]


def area(p: Pen, x0: float, y0: float, x1: float, y1: float, stops: tuple[RGB, ...], grain: str = "fine") -> None:
    p.textured([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], stops, grain)


def wavy(p: Pen, x: float, amount: float) -> list[tuple[float, float]]:
    """Points from top to bottom of an uneven edge near `x`."""
    return [(x + between(p.rng, -amount, amount), -0.3 + 0.1 * i) for i in range(17)]


def airport(p: Pen) -> None:
    cover(p, plants(p))
    area(p, 0.0, -0.3, 0.98, 0.71, CONCRETE)
    for x in (0.455, 0.71, 0.97):
        p.line([(x, -0.3), (x, 0.71)], 0.005, (212, 184, 60))
    for y in (-0.1, 0.245, 0.475):
        p.line([(0.0, y), (0.98, y)], 0.003, (134, 132, 128))
    area(p, -0.3, 0.73, 1.3, 0.81, ASPHALT)
    for y in (0.735, 0.805):
        p.line([(-0.3, y), (1.3, y)], 0.005, PAINT)
    for i in range(17):
        p.box(-0.28 + 0.1 * i, 0.766, -0.22 + 0.1 * i, 0.774, PAINT)
    for i in range(4):
        p.box(0.03, 0.744 + i * 0.015, 0.1, 0.751 + i * 0.015, PAINT)


def harbour(p: Pen) -> None:
    cover(p, WATER, "broad")
    edge = between(p.rng, 0.385, 0.41)
    area(p, -0.3, -0.3, edge, 1.3, CONCRETE)
    p.line([(edge, -0.3), (edge, 1.3)], 0.016, (112, 108, 102))
    for y in (0.245, 0.475, 0.71):
        p.box(edge, y - 0.014, 0.93, y + 0.014, (168, 150, 124), 0.012)
        for i in range(7):
            p.disc(edge + 0.07 + 0.075 * i, y, 0.006, (96, 84, 70))
    p.line([(0.37, -0.3), (0.37, 1.3)], 0.004, (214, 186, 60))


def storage(p: Pen) -> None:
    cover(p, GRAVEL, "fine")
    area(p, 0.39, -0.3, 0.43, 1.3, ASPHALT)
    area(p, -0.3, 0.73, 1.3, 0.765, ASPHALT)
    for x in (0.58, 0.84):
        for y in ROWS:
            c = jitter(p.rng, (172, 160, 136), 8)
            p.box(x - 0.125, y - 0.11, x + 0.125, y + 0.11, shade(c, 0.75))
            p.box(x - 0.119, y - 0.104, x + 0.119, y + 0.104, c)
    for y in ROWS:
        p.line([(0.43, y), (0.84, y)], 0.007, (196, 196, 192))


def pivot(p: Pen) -> None:
    cover(p, ((176, 152, 112), (194, 170, 128), (208, 188, 148)), "broad")
    for x in (0.44, 0.71, 0.98):
        p.line([(x, -0.3), (x, 1.3)], 0.008, (214, 198, 166))
    for y in (0.015, 0.245, 0.475, 0.72):
        p.line([(0.4, y), (1.3, y)], 0.008, (214, 198, 166))


def strips(p: Pen) -> None:
    base = plants(p)
    cover(p, base, "fine")
    x = -0.3
    while x < 1.3:
        width = between(p.rng, 0.04, 0.1)
        f = between(p.rng, 0.78, 1.12)
        tone = shade(jitter(p.rng, base[1], 4), between(p.rng, 0.88, 1.06))
        area(p, x, -0.3, x + width, 1.3, (shade(tone, f * 0.92), shade(tone, f), shade(tone, f * 1.06)))
        for k in range(2):
            u = x + width * (k + 1) / 3
            p.line([(u, -0.3), (u, 1.3)], 0.003, shade(tone, f * 0.88))
        x += width
    p.line([(0.405, -0.3), (0.405, 1.3)], 0.016, (186, 168, 128))


def forest(p: Pen) -> None:
    dark = {"summer": (22, 54, 26), "autumn": (96, 62, 28), "winter": (150, 158, 156)}[p.sheet.season]
    cover(p, (shade(dark, 0.7), dark, shade(dark, 1.5)), "fine")
    snow = p.sheet.season == "winter"
    for _ in range(230):
        tree(p, between(p.rng, -0.06, 1.06), between(p.rng, -0.06, 1.06), between(p.rng, 0.014, 0.034), snow)


def river(p: Pen) -> None:
    cover(p, plants(p))
    x, half = 0.19, between(p.rng, 0.085, 0.105)
    left = wavy(p, x - half, 0.016)
    right = wavy(p, x + half, 0.016)[::-1]
    bank = [(u - 0.014, v) for u, v in left] + [(u + 0.014, v) for u, v in right]
    p.poly(bank, (168, 152, 112))
    p.textured([*left, *right], WATER, "mid")
    area(p, -0.3, 0.225, 1.3, 0.265, ASPHALT)
    p.line([(-0.3, 0.245), (1.3, 0.245)], 0.004, PAINT)


def dense_housing(p: Pen) -> None:
    cover(p, ((118, 114, 106), (132, 128, 118), (146, 142, 132)), "fine")
    tones = ((150, 128, 112), (130, 118, 110), (166, 156, 146), (142, 122, 104), (158, 146, 128))
    for i in range(17):
        if i % 4 == 3:
            area(p, -0.15 + i * 0.076, -0.2, -0.1 + i * 0.076, 1.2, ASPHALT)
            continue
        for j in range(18):
            if j % 6 == 5:
                continue
            x, y = -0.15 + i * 0.076, -0.15 + j * 0.072
            w, h = between(p.rng, 0.028, 0.033), between(p.rng, 0.024, 0.031)
            c = jitter(p.rng, pick(p.rng, tones), 8)
            p.box(x - w, y - h, x + w, y + h, shade(c, 0.84), 0.01)
            p.box(x - w, y - h, x + w, y, shade(c, 1.06))
    for y in (-0.15 + 5 * 0.072, -0.15 + 11 * 0.072):
        area(p, -0.2, y - 0.022, 1.2, y + 0.022, ASPHALT)


def sparse_housing(p: Pen) -> None:
    base = plants(p)
    cover(p, base)
    for i in range(4):
        for j in range(4):
            if p.rng.integers(3):
                x, y = -0.05 + 0.28 * i, -0.1 + 0.24 * j
                tone = shade(jitter(p.rng, base[1], 4), between(p.rng, 0.9, 1.05))
                area(p, x, y, x + 0.27, y + 0.23, (shade(tone, 0.94), tone, shade(tone, 1.06)))
    lane = {"winter": (150, 150, 150)}.get(p.sheet.season, (188, 176, 150))
    p.line([(x + 0.07, y) for x, y in wavy(p, 0.36, 0.012)], 0.024, lane)


def car_park(p: Pen) -> None:
    cover(p, ASPHALT, "fine")
    for y in ROWS:
        for i in range(7):
            x = 0.41 + 0.087 * i
            p.line([(x, y - 0.105), (x, y + 0.105)], 0.005, PAINT)
    area(p, -0.3, 0.735, 1.3, 1.3, plants(p))
    p.line([(-0.3, 0.735), (1.3, 0.735)], 0.01, (190, 188, 182))


def stadium(p: Pen) -> None:
    cover(p, plants(p))
    p.textured(ring(0.19, 0.36, 0.245, 0.345), CONCRETE)
    area(p, 0.45, -0.3, 0.97, 0.71, ASPHALT)
    for x in (0.458, 0.71, 0.962):
        p.line([(x, -0.3), (x, 0.71)], 0.005, PAINT)


def solar_farm(p: Pen) -> None:
    cover(p, plants(p))
    c = jitter(p.rng, (28, 46, 96), 8)
    for i in range(15):
        y = -0.1 + i * 0.058
        for x0, x1 in ((0.41, 0.70), (0.725, 1.02)):
            p.box(x0, y, x1, y + 0.042, c, 0.008)
            p.line([(x0, y + 0.004), (x1, y + 0.004)], 0.006, (96, 124, 182))
            for k in range(1, 7):
                u = x0 + (x1 - x0) * k / 7
                p.line([(u, y), (u, y + 0.042)], 0.003, (120, 140, 180))


def desert(p: Pen) -> None:
    cover(p, ((186, 140, 84), (214, 172, 114), (234, 200, 146)), "broad")
    for _ in range(12):
        x, y, r = between(p.rng, -0.1, 1.1), between(p.rng, -0.1, 1.1), between(p.rng, 0.06, 0.16)
        crest = [(x + 0.9 * k * r, y + 0.2 * r * (k * k - 1) + 0.1 * r * k) for k in (-1, -0.6, -0.2, 0.2, 0.6, 1)]
        foot = [(u, v + 0.26 * r) for u, v in crest[::-1]]
        p.poly([*crest, *foot], (158, 114, 66), alpha=60)
        p.line(crest, 0.005, (244, 216, 168))


def beach(p: Pen) -> None:
    cover(p, SAND, "mid")
    shore = [(y, x) for x, y in wavy(p, 0.745, 0.012)]
    for shift, colour in ((-0.012, (190, 164, 118)), (0.0, (240, 246, 246)), (0.014, (96, 190, 200))):
        p.poly([*((x, y + shift) for x, y in shore), (1.4, 1.5), (-0.4, 1.5)], colour)
    p.textured([*((x, y + 0.03) for x, y in shore), (1.4, 1.5), (-0.4, 1.5)], ((30, 130, 160), (46, 152, 178)), "broad")
    for _ in range(6):
        x, y = between(p.rng, -0.1, 1.0), between(p.rng, 0.8, 1.0)
        p.line([(x, y), (x + 0.06, y + 0.004), (x + 0.11, y - 0.002)], 0.004, (196, 226, 230))


def motorway(p: Pen) -> None:
    cover(p, plants(p))
    for cx, cy in ((0.405, 0.635), (0.405, 0.87), (1.015, 0.635), (1.015, 0.87)):
        p.poly(ring(cx, cy, 0.105, 0.105), (98, 100, 104))
        p.textured(ring(cx, cy, 0.068, 0.068), plants(p))
        p.line(ring(cx, cy, 0.099, 0.099), 0.004, PAINT)
    area(p, -0.3, 0.715, 1.3, 0.79, ASPHALT)
    p.line([(-0.3, 0.752), (1.3, 0.752)], 0.006, PAINT)
    for x in (0.58, 0.84):
        p.box(x - 0.104, -0.3, x + 0.104, 1.3, (150, 148, 142), 0.01)
        area(p, x - 0.1, -0.3, x + 0.1, 1.3, ASPHALT)
        for u in (x - 0.09, x + 0.09):
            p.line([(u, -0.3), (u, 1.3)], 0.006, PAINT)
        for i in range(20):
            for u in (x - 0.03, x + 0.03):
                p.line([(u, -0.3 + i * 0.08), (u, -0.26 + i * 0.08)], 0.005, PAINT)


def railway(p: Pen) -> None:
    cover(p, GRAVEL, "fine")
    area(p, -0.3, -0.3, 0.395, 0.74, CONCRETE)
    for i in range(6):
        x = 0.49 + 0.09 * i
        p.box(x - 0.024, -0.3, x + 0.024, 1.3, (112, 100, 88))
        for k in range(40):
            y = -0.2 + k * 0.035
            p.line([(x - 0.02, y), (x + 0.02, y)], 0.007, (84, 70, 58))
        for u in (x - 0.012, x + 0.012):
            p.line([(u, -0.3), (u, 1.3)], 0.006, (206, 206, 208))


def sports(p: Pen) -> None:
    cover(p, plants(p))
    for y in (0.245, 0.475):
        p.line([(0.42, y), (1.3, y)], 0.014, (200, 190, 166))
    for x in (0.42, 0.71):
        p.line([(x, -0.3), (x, 0.73)], 0.014, (200, 190, 166))
    p.line([(-0.3, 0.735), (1.3, 0.735)], 0.018, (200, 190, 166))


def lake(p: Pen) -> None:
    cover(p, plants(p))
    shore = [*wavy(p, 0.43, 0.016)[:11], (0.6, 0.75), (0.75, 0.73), (0.9, 0.76), (1.4, 0.74), (1.4, -0.4)]
    p.poly([(x - 0.012, y + 0.012) for x, y in shore], (186, 174, 136))
    p.textured(shore, WATER, "broad")


def industrial(p: Pen) -> None:
    cover(p, CONCRETE, "fine")
    area(p, 0.385, -0.3, 0.435, 1.3, ASPHALT)
    area(p, -0.3, 0.725, 1.3, 0.77, ASPHALT)
    for y in (0.245, 0.475):
        area(p, 0.435, y - 0.012, 1.3, y + 0.012, ASPHALT)
    p.line([(0.41, -0.3), (0.41, 1.3)], 0.004, PAINT)
    for _ in range(9):
        x, y = pick(p.rng, (between(p.rng, 0.02, 0.36), between(p.rng, 0.46, 0.96))), between(p.rng, 0.0, 0.7)
        p.disc(x, y, between(p.rng, 0.01, 0.03), (120, 116, 110), alpha=70)


def wind_farm(p: Pen) -> None:
    base = plants(p)
    cover(p, base)
    for i in range(4):
        for j in range(4):
            tone = shade(jitter(p.rng, base[1], 8), between(p.rng, 0.84, 1.08))
            x, y = -0.14 + 0.33 * i + 0.03 * j, -0.14 + 0.31 * j - 0.03 * i
            area(p, x, y, x + 0.32, y + 0.3, (shade(tone, 0.94), tone, shade(tone, 1.06)))
    p.line([(0.71, -0.3), (0.71, 0.74)], 0.012, (204, 190, 156))
    for y in ROWS:
        p.line([(0.58, y), (0.84, y)], 0.009, (204, 190, 156))
