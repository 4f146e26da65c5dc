"""Made overhead scenes with exact ground truth: `make_scene(seed)`, and `scene_example(seed)` with its texts.

One seed, one scene: the same facts, pixels and PNG bytes on every machine.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from src.dataset.scene_canvas import COLOURS, Pen, Sheet, between, expose, jitter, pick
from src.dataset.scene_extras import EXTRAS
from src.dataset.scene_facts import RELATIONS, Facts, draw_facts
from src.dataset.scene_kinds import EXTENT, KINDS
from src.dataset.scene_landmarks import LANDMARKS
from src.dataset.scene_sprites import SPRITES
from src.dataset.scene_text import CORRUPTIONS, captions, corrupt

SEEDS_PER_SET = 10_000_000  # scene seeds of data set `s` are s * SEEDS_PER_SET + index
CELLS = tuple((x, y) for y in (0.13, 0.36, 0.59) for x in (0.58, 0.84))
# By count, the choices of cells whose middle is near the landmark's height, so that the relation has one axis.
CHOICES = {n: [c for c in combinations(range(6), n) if abs(sum(i // 2 for i in c) / n - 1) < 0.35] for n in range(1, 7)}


@dataclass(frozen=True)
class SceneObject:
    """One visible thing; `box` is (x1, y1, x2, y2) in pixels, inside the image; `role` counted, landmark or extra."""

    category: str
    colour: str | None
    box: tuple[int, int, int, int]
    role: str


@dataclass(frozen=True)
class Scene:
    """An RGB image with all that is true of it."""

    seed: int
    image: Image.Image
    facts: Facts
    objects: tuple[SceneObject, ...]
    attributes: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.facts.kind

    @property
    def relations(self) -> list[tuple[str, str, str]]:
        """(category, relation, landmark) triples."""
        return [(self.facts.category, self.facts.relation, self.facts.landmark)]


def scene_rng(seed: int) -> np.random.Generator:
    """The generator a scene is made from; `seed` is any non-negative integer."""
    return np.random.Generator(np.random.PCG64([seed, 0x5CE2E5]))


def _place(pen: Pen, category: str, colour: str | None, role: str) -> SceneObject:
    half = pen.sheet.side // 2
    x0, y0, x1, y1 = (max(0, min(half, v)) for v in (*(b // 2 for b in pen.bounds[:2]),
                                                    *(-(-b // 2) for b in pen.bounds[2:])))  # fmt: skip
    return SceneObject(category, colour, (x0, y0, x1, y1), role)


def _counted(p: Pen, facts: Facts, scale: float) -> list[SceneObject]:
    """Draws the counted things, each in a cell of its own."""
    rng, rules, objects = p.rng, KINDS[facts.kind], []
    size = EXTENT[facts.category][0] * scale
    if facts.category == "train":
        places = [(0.49 + 0.09 * int(i), 0.36 + between(rng, -0.05, 0.05)) for i in rng.permutation(6)]
    elif facts.category == "locomotive":
        places = [(CELLS[i][0] // 0.7 * 0.27 + 0.58, CELLS[i][1]) for i in pick(rng, CHOICES[facts.count])]
    else:
        places = [CELLS[i] for i in pick(rng, CHOICES[facts.count])]
    common, tidy = int(rng.integers(360)), int(rng.integers(3)) == 0
    base = jitter(rng, COLOURS[facts.colour], 8)
    for column, row in places[: facts.count]:
        if rules.turned:
            heading, slack = 90 + 180 * int(rng.integers(2)), 0.0
        elif rules.free:
            heading, slack = common if tidy else int(rng.integers(360)), 0.02
        else:
            heading, slack = 180 * int(rng.integers(2)), 0.008
        x, y = column + between(rng, -slack, slack), row + between(rng, -slack, slack)
        if rules.pad:
            yard = size * 0.62
            p.box(x - yard, y - yard * 0.8, x + yard, y + yard * 0.8, jitter(rng, rules.pad, 5))
        pen = p.at(x, y, size * between(rng, 0.96, 1.04), heading)
        SPRITES[facts.category](pen, jitter(rng, base, 4))
        objects.append(_place(pen, facts.category, facts.colour, "counted"))
    return objects


def _extras(p: Pen, facts: Facts) -> list[SceneObject]:
    rng, objects = p.rng, []
    low = facts.kind in {"airport", "motorway"}
    at = [KINDS[facts.kind].extra_at[int(i)] for i in rng.permutation(len(KINDS[facts.kind].extra_at))]
    for name in sorted(facts.extras, key=lambda e: e != "road"):
        if name == "road":
            pen = p.at(0.5, 0.74, 1.0)
        else:
            x, y = at.pop() + between(rng, -0.02, 0.02), (0.905 if low else 0.87) + between(rng, -0.008, 0.008)
            pen = p.at(x, y, (0.17 if low else 0.2) * between(rng, 0.95, 1.05), 180 * int(rng.integers(2)))
        EXTRAS[name](pen)
        objects.append(_place(pen, name, None, "extra"))
    return objects


def make_scene(seed: int, kind: str | None = None, size: int = 224) -> Scene:
    """The scene of `seed` (a non-negative integer), `size` pixels square.

    With `kind` (a key of KINDS) the scene is of that kind, else the seed picks one. Raises KeyError for no such kind.
    """
    rng = scene_rng(seed)
    facts = draw_facts(rng, kind)
    sheet = Sheet(size, rng, facts.season or "summer")
    tilt = int(rng.integers(-6, 7))
    p = Pen.over(sheet, RELATIONS.index(facts.relation), bool(rng.integers(2)), tilt)
    scale = between(rng, 0.92, 1.08)
    KINDS[facts.kind].ground(p)
    landmark_size = (0.36 if facts.landmark == "stadium" else 0.29) * between(rng, 0.92, 1.06)
    x, y = 0.19 + between(rng, -0.015, 0.015), 0.36 + between(rng, -0.04, 0.04)
    pen = p.at(x, 0.245 if facts.landmark == "bridge" else y, landmark_size, 180 * int(rng.integers(2)))
    LANDMARKS[facts.landmark](pen, jitter(rng, COLOURS[facts.landmark_colour], 8))
    landmark = _place(pen, facts.landmark, facts.landmark_colour, "landmark")
    extras = _extras(p, facts)
    counted = _counted(p, facts, scale)
    share, metres = EXTENT[facts.category]
    attributes: dict[str, Any] = {
        "season": facts.season,
        "gsd_m": round(metres / (share * scale * size), 3),
        "rotation": (90 * RELATIONS.index(facts.relation) + tilt) % 360,
        "haze": int(pick(rng, (0, 0, 0, 4, 8, 14, 20))),
        "gain": int(rng.integers(86, 113)),
        "warmth": int(rng.integers(-5, 6)),
        "noise": int(rng.integers(1, 6)),
        "blur": int(pick(rng, (0, 0, 0, 1))),
    }
    image = expose(sheet, **{k: attributes[k] for k in ("haze", "gain", "warmth", "noise", "blur")})
    return Scene(seed, image, facts, (landmark, *counted, *extras), attributes)


def scene_example(
    seed: int, rng: np.random.Generator | None = None, size: int = 224, wordings: int = 3
) -> tuple[Image.Image, list[str], dict[str, str]]:
    """A training example: (image, `wordings` true captions, one false or useless caption by kind of corruption).

    `rng` words the captions (default: from the seed), so that one scene may be seen under ever new words.
    """
    scene = make_scene(seed, size=size)
    rng = rng or np.random.Generator(np.random.PCG64([seed, 1]))
    return scene.image, captions(scene.facts, rng, wordings), {k: corrupt(scene.facts, rng, k)[0] for k in CORRUPTIONS}


def png_bytes(image: Image.Image) -> bytes:
    """An RGB image as PNG, stored uncompressed: sensor noise hardly packs, and no two zlibs pack it alike."""
    rows = np.asarray(image.convert("RGB"))
    height, width, _ = rows.shape
    raw = np.zeros((height, 1 + 3 * width), np.uint8)
    raw[:, 1:] = rows.reshape(height, -1)
    data = raw.tobytes()
    stream = [b"\x78\x01"]
    for start in range(0, len(data), 65535):
        block = data[start : start + 65535]
        last = start + 65535 >= len(data)
        stream.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
    stream.append(struct.pack(">I", zlib.adler32(data)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(*c) for c in ((b"IHDR", header), (b"IDAT", b"".join(stream)), (b"IEND", b""))
    )


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def scene_seeds(seed: int, count: int) -> Sequence[int]:
    """The scene seeds of data set `seed`: sets of different seeds share none. Raises ValueError beyond the range."""
    if seed < 0 or not 0 < count <= SEEDS_PER_SET:
        raise ValueError(f"need seed >= 0 and 0 < count <= {SEEDS_PER_SET}, not seed {seed}, count {count}")
    return range(seed * SEEDS_PER_SET, seed * SEEDS_PER_SET + count)
