"""The table of scene kinds: what may be counted in each, beside what, on which ground, and in which words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from src.dataset import scene_grounds as grounds
from src.dataset.scene_canvas import RGB, Pen

Palettes = Mapping[str, tuple[str, ...]]  # category -> names of the colours it comes in

# Colours that would melt into living ground of a season.
HIDDEN = {"summer": {"green"}, "autumn": {"brown", "yellow"}, "winter": {"white", "grey"}, "": set[str]()}


@dataclass(frozen=True)
class Kind:
    """One kind of scene. Exactly one category of `counted` and one of `landmarks` is drawn; of `extras`, 0 to 2.

    `seasons` is empty where the ground shows none. `extra_at` are the x of the places an extra may take.
    `pad` is the colour of the yard laid under each counted thing.
    """

    ground: Callable[[Pen], None]
    names: tuple[str, ...]
    preposition: str
    counted: Palettes
    landmarks: Palettes
    extras: tuple[str, ...]
    seasons: tuple[str, ...] = ("summer", "autumn", "winter")
    free: bool = False  # counted things point anywhere
    turned: bool = False  # counted things point along y
    pad: RGB | None = None
    extra_at: tuple[float, ...] = (0.17, 0.5, 0.83)


BRIGHT = ("red", "blue", "white", "yellow", "orange", "green")
CARS = ("red", "blue", "white", "yellow", "orange")
ROOFS = ("red", "blue", "white", "grey", "brown", "orange")
BUILT = ("red", "blue", "white", "grey", "brown")
FIELDS = ("green", "brown", "yellow")

KINDS: dict[str, Kind] = {
    "airport": Kind(
        grounds.airport, ("an airport",), "at",
        {"plane": ("white", "red", "blue", "orange"), "helicopter": ("red", "blue", "yellow", "white", "green"),
         "truck": CARS},
        {"terminal": ("white", "blue", "red", "brown"), "hangar": ("white", "blue", "red", "green")},
        ("pond", "clump of trees", "car park", "helipad"), free=True),
    "harbour": Kind(
        grounds.harbour, ("a harbour", "a port"), "in",
        {"ship": BRIGHT, "sailing boat": ("white", "red", "yellow", "orange")},
        {"warehouse": ("red", "blue", "white", "brown", "green"), "crane": ("red", "yellow", "blue", "orange")},
        ("car park", "clump of trees", "water tank"), seasons=(), extra_at=(0.17,)),
    "storage tanks": Kind(
        grounds.storage, ("a tank farm", "an oil depot"), "in",
        {"storage tank": ("white", "red", "blue", "green", "orange", "yellow")},
        {"office building": BUILT, "warehouse": BUILT},
        ("pond", "clump of trees", "car park", "tennis court"), seasons=()),
    "irrigated farmland": Kind(
        grounds.pivot, ("irrigated farmland", "an irrigated plain"), "on",
        {"circular field": FIELDS, "square field": FIELDS},
        {"barn": ("red", "white", "blue", "grey"), "lake": ("blue", "green")},
        ("road", "clump of trees", "greenhouse", "water tank"), seasons=()),
    "strip farmland": Kind(
        grounds.strips, ("strip farmland", "a farm with long strips of land"), "on",
        {"tractor": ("red", "blue", "green", "orange", "yellow"), "hay bale": ("yellow", "white", "brown", "blue")},
        {"farmhouse": ROOFS, "barn": ROOFS},
        ("pond", "road", "greenhouse", "clump of trees"), free=True),
    "forest": Kind(
        grounds.forest, ("a forest", "dense woodland"), "in",
        {"cabin": ("red", "blue", "white", "yellow", "orange"), "tent": ("red", "blue", "white", "yellow", "orange")},
        {"lake": ("blue", "green"), "rocky hill": ("grey", "brown", "red")},
        ("road", "helipad", "water tank", "playground"), free=True),
    "river": Kind(
        grounds.river, ("a river valley", "a riverside area"), "in",
        {"house": ROOFS, "tent": ("red", "blue", "white", "yellow", "orange")},
        {"bridge": ("red", "white", "grey", "blue")},
        ("pond", "clump of trees", "baseball field", "greenhouse"), free=True, extra_at=(0.5, 0.83)),
    "dense housing": Kind(
        grounds.dense_housing, ("a dense residential area", "a crowded town"), "in",
        {"apartment block": ("red", "blue", "white", "yellow", "green"), "swimming pool": ("blue", "green")},
        {"church": ("red", "blue", "white", "green"), "school": ("red", "blue", "white", "yellow")},
        ("clump of trees", "car park", "tennis court", "playground"), seasons=(), pad=(120, 122, 118)),
    "sparse housing": Kind(
        grounds.sparse_housing, ("a sparse residential area", "a quiet village"), "in",
        {"house": ROOFS, "car": CARS},
        {"church": ("red", "blue", "white", "grey"), "lake": ("blue", "green")},
        ("baseball field", "swimming pool", "clump of trees", "playground", "road"), free=True),
    "car park": Kind(
        grounds.car_park, ("a car park", "a parking lot"), "in",
        {"car": BRIGHT, "bus": BRIGHT, "truck": BRIGHT},
        {"supermarket": ("red", "blue", "white", "brown"), "office building": ("red", "blue", "white", "brown")},
        ("pond", "clump of trees", "playground", "tennis court"), turned=True),
    "stadium": Kind(
        grounds.stadium, ("a sports venue", "an event ground"), "at",
        {"bus": CARS, "car": CARS, "truck": CARS},
        {"stadium": ("white", "red", "blue", "grey", "orange"), "arena": ("white", "red", "blue", "grey", "orange")},
        ("pond", "clump of trees", "tennis court", "baseball field")),
    "solar farm": Kind(
        grounds.solar_farm, ("a solar farm", "a solar power plant"), "in",
        {"hut": ("red", "white", "yellow", "orange", "green"), "truck": ("red", "white", "yellow", "orange", "green")},
        {"substation": ("red", "blue", "white", "green"), "office building": ("red", "blue", "white", "brown")},
        ("pond", "road", "water tank", "clump of trees"), pad=(176, 166, 142)),
    "desert": Kind(
        grounds.desert, ("a desert", "a sandy desert"), "in",
        {"tent": ("red", "blue", "white", "green"), "truck": ("red", "blue", "white", "green")},
        {"oasis": ("blue", "green"), "rocky hill": ("grey", "red", "brown")},
        ("road", "water tank", "helipad", "greenhouse"), seasons=(), free=True),
    "beach": Kind(
        grounds.beach, ("a beach", "a sandy beach"), "on",
        {"umbrella": ("red", "blue", "white", "green", "orange"), "tent": ("red", "blue", "white", "green", "orange")},
        {"hotel": ("red", "blue", "white", "grey"), "lifeguard tower": ("red", "blue", "white", "orange")},
        ("island", "sailing boat", "pile of rocks"), seasons=(), free=True),
    "motorway": Kind(
        grounds.motorway, ("a motorway junction", "a highway interchange"), "at",
        {"truck": BRIGHT, "bus": BRIGHT},
        {"service station": ("red", "blue", "white", "green"), "roundabout": ("red", "white", "yellow", "orange")},
        ("pond", "clump of trees", "water tank", "greenhouse"), turned=True, extra_at=(0.17,)),
    "railway yard": Kind(
        grounds.railway, ("a railway yard", "a train depot"), "in",
        {"train": BRIGHT, "locomotive": BRIGHT},
        {"station": ("red", "blue", "white", "brown", "green"), "engine shed": ("red", "blue", "white", "green")},
        ("car park", "clump of trees", "water tank"), seasons=(), turned=True, extra_at=(0.17,)),
    "sports courts": Kind(
        grounds.sports, ("a sports park", "a recreation area"), "in",
        {"tennis court": ("blue", "red", "orange", "green"), "basketball court": ("blue", "red", "orange", "grey")},
        {"running track": ("red", "blue", "orange"), "gymnasium": ("red", "blue", "white", "grey")},
        ("swimming pool", "car park", "baseball field", "playground", "pond")),
    "lake": Kind(
        grounds.lake, ("a lake", "a reservoir"), "on",
        {"sailing boat": ("white", "red", "yellow", "orange"), "island": ("green", "brown", "yellow")},
        {"hotel": ("red", "blue", "orange", "brown", "white"), "church": ("red", "blue", "orange", "white")},
        ("car park", "clump of trees", "tennis court", "playground"), free=True),
    "industrial area": Kind(
        grounds.industrial, ("an industrial area", "a factory district"), "in",
        {"warehouse": ("red", "blue", "white", "green", "brown", "orange"), "truck": BRIGHT,
         "container": BRIGHT},
        {"cooling tower": ("white", "grey", "red"), "office building": ("red", "blue", "white", "brown")},
        ("pond", "clump of trees", "car park", "water tank"), seasons=()),
    "wind farm": Kind(
        grounds.wind_farm, ("a wind farm", "farmland with a wind farm"), "on",
        {"wind turbine": ("white", "red", "blue", "orange")},
        {"substation": ("red", "blue", "white", "orange"), "farmhouse": ("red", "blue", "white", "orange")},
        ("pond", "road", "clump of trees", "greenhouse"), seasons=("summer", "autumn"), free=True),
}  # fmt: skip

# Length in the picture (share of its side) and on the ground (metres) of each counted category.
EXTENT: dict[str, tuple[float, float]] = {
    "plane": (0.2, 38), "helicopter": (0.18, 17), "truck": (0.19, 14), "bus": (0.19, 13), "car": (0.15, 4.6),
    "ship": (0.21, 120), "sailing boat": (0.16, 12), "storage tank": (0.16, 36), "container": (0.18, 12.2),
    "circular field": (0.2, 800), "square field": (0.17, 600), "tractor": (0.14, 5.5), "hay bale": (0.1, 1.6),
    "cabin": (0.14, 10), "house": (0.15, 14), "tent": (0.12, 5), "apartment block": (0.19, 48),
    "swimming pool": (0.16, 18), "train": (0.54, 70), "locomotive": (0.19, 19), "tennis court": (0.2, 34),
    "basketball court": (0.19, 28), "umbrella": (0.11, 3), "warehouse": (0.2, 60), "wind turbine": (0.2, 90),
    "hut": (0.12, 6), "island": (0.14, 80),
}  # fmt: skip


def colours_of(kind: str, season: str, category: str) -> tuple[str, ...]:
    """The colours `category` may have in a scene of that kind and season, as a counted thing or a landmark."""
    palettes = {**KINDS[kind].landmarks, **KINDS[kind].counted}
    hidden = set() if category in {"lake", "island"} else HIDDEN[season]  # these do not border on plants
    return tuple(c for c in palettes[category] if c not in hidden)
