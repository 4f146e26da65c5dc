"""Secondary things of made scenes: they are there or not, and captions may name them. Unit frames, about -0.5..0.5."""

from collections.abc import Callable

from src.dataset.scene_canvas import COLOURS, Pen, between, blob, jitter, pick, ring, shade
from src.dataset.scene_landmarks import ASPHALT, WATER, tree
from src.dataset.scene_sprites import PAINT, car, sailing_boat, storage_tank, swimming_pool, tennis_court


def pond(p: Pen) -> None:
    shore = blob(p.rng, 0, 0, 0.44, 0.34)
    p.poly([(x * 1.1, y * 1.12) for x, y in shore], (150, 144, 104))
    p.textured(shore, WATER, "mid")


def trees(p: Pen) -> None:
    for y in (-0.24, 0.02, 0.26):
        for x in (-0.4, -0.2, 0.0, 0.2, 0.4):
            u, v = between(p.rng, -0.05, 0.05), between(p.rng, -0.05, 0.05)
            tree(p, x + u, y + v, between(p.rng, 0.11, 0.16))


def court(p: Pen) -> None:
    tennis_court(p, pick(p.rng, ((52, 120, 76), (178, 92, 60), (58, 96, 160))))


def car_park(p: Pen) -> None:
    p.textured([(-0.5, -0.36), (0.5, -0.36), (0.5, 0.36), (-0.5, 0.36)], ASPHALT)
    for y in (-0.2, 0.2):
        for i in range(8):
            x = -0.42 + 0.12 * i
            p.line([(x - 0.06, y - 0.13), (x - 0.06, y + 0.13)], 0.012, PAINT)
            if p.rng.integers(5) and i < 7:
                car(p.at(x, y, 0.2, 90), pick(p.rng, ((220, 220, 220), (60, 62, 70), (150, 44, 40), (50, 80, 150))))


def water_tank(p: Pen) -> None:
    p.box(-0.4, -0.4, 0.4, 0.4, (150, 144, 132))
    storage_tank(p.at(0, 0, 0.64), (226, 228, 226))


def baseball_field(p: Pen) -> None:
    p.poly([(-0.44, 0.36), (-0.44, -0.1), (-0.2, -0.4), (0.14, -0.4), (0.4, -0.1), (0.44, 0.36)], (92, 146, 66))
    p.poly([(-0.42, 0.36), (-0.42, 0.02), (-0.28, -0.16), (-0.04, -0.16), (0.12, 0.04), (0.12, 0.36)], (190, 138, 88))
    p.poly([(-0.34, 0.28), (-0.34, 0.04), (-0.04, 0.04), (-0.04, 0.28)], (100, 154, 72))
    p.disc(-0.19, 0.16, 0.05, (190, 138, 88))


def pool(p: Pen) -> None:
    swimming_pool(p.at(0, 0, 0.9), COLOURS["blue"])


def helipad(p: Pen) -> None:
    p.box(-0.4, -0.4, 0.4, 0.4, (112, 114, 118))
    p.disc(0, 0, 0.33, PAINT)
    p.disc(0, 0, 0.28, (120, 122, 126))
    for points in ([(-0.12, -0.18), (-0.12, 0.18)], [(0.12, -0.18), (0.12, 0.18)], [(-0.12, 0), (0.12, 0)]):
        p.line(points, 0.07, PAINT)


def greenhouse(p: Pen) -> None:
    for y in (-0.22, 0.02, 0.26):
        p.box(-0.44, y - 0.1, 0.44, y + 0.1, (206, 222, 222), 0.06)
        p.box(-0.44, y, 0.44, y + 0.1, (176, 200, 204))
        for i in range(9):
            p.line([(-0.4 + i * 0.1, y - 0.1), (-0.4 + i * 0.1, y + 0.1)], 0.014, (140, 160, 166))


def island(p: Pen) -> None:
    shore = blob(p.rng, 0, 0, 0.44, 0.32)
    p.poly([(x * 1.1, y * 1.14) for x, y in shore], (222, 208, 160))
    p.textured(shore, [(70, 104, 52), (96, 130, 66)])
    for x, y in shore[::6]:
        tree(p, x * 0.5, y * 0.5, 0.1)


def boat(p: Pen) -> None:
    sailing_boat(p.at(0, 0, 0.8, int(p.rng.integers(360))), COLOURS["white"])


def boulders(p: Pen) -> None:
    for x, y, r in (
        (-0.22, -0.1, 0.2),
        (0.14, -0.16, 0.16),
        (0.06, 0.16, 0.22),
        (-0.26, 0.22, 0.12),
        (0.34, 0.1, 0.13),
    ):
        c = jitter(p.rng, (120, 106, 92), 10)
        p.poly(blob(p.rng, x, y, r, r * 0.85, 0.14), shade(c, 0.75), 0.08)
        p.poly(blob(p.rng, x - 0.02, y - 0.02, r * 0.7, r * 0.6, 0.1), shade(c, 1.12))


def playground(p: Pen) -> None:
    p.poly(ring(0, 0, 0.46, 0.38, 20), (222, 196, 142))
    things: tuple[tuple[float, float, str], ...] = ((-0.2, -0.1, "red"), (0.14, -0.16, "yellow"), (0.05, 0.16, "blue"))
    for x, y, name in things:
        p.box(x - 0.09, y - 0.06, x + 0.09, y + 0.06, COLOURS[name], 0.1)
    p.line([(-0.3, 0.16), (-0.14, 0.2)], 0.05, COLOURS["green"])


def road(p: Pen) -> None:
    """A road across the whole sheet; the frame is the sheet's own with its origin on the road."""
    p.textured([(-0.8, -0.027), (0.8, -0.027), (0.8, 0.027), (-0.8, 0.027)], ASPHALT)
    for y in (-0.024, 0.024):
        p.line([(-0.8, y), (0.8, y)], 0.004, PAINT)
    for i in range(28):
        x = -0.8 + i * 0.058
        p.line([(x, 0), (x + 0.03, 0)], 0.005, PAINT)


EXTRAS: dict[str, Callable[[Pen], None]] = {
    "pond": pond, "clump of trees": trees, "tennis court": court, "car park": car_park, "water tank": water_tank,
    "baseball field": baseball_field, "swimming pool": pool, "helipad": helipad, "greenhouse": greenhouse,
    "island": island, "sailing boat": boat, "pile of rocks": boulders, "playground": playground, "road": road,
}  # fmt: skip
