"""Sets of class folders (``AID_Image/Airport/x1.jpg``): where they are, what their classes are called, their prompts.

Templates and names that cannot be read off the folders are data, in ``data/class_sets.yaml``.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from src.errors import JobError

_PACKAGED = Path(__file__).parent / "data" / "class_sets.yaml"
_IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".gif", ".bmp", ".jp2", ".ppm"}
_SUFFIX = "_image"
# BareLand, footballField, RVPark
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_ACRONYM = 3  # letters; a longer word in capitals is one that somebody shouted

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """How the classes of a set are put into words.

    Attributes:
        templates: sentences with one ``{}`` each, the class.
        names: by folder what a class is called, where :func:`readable` is not enough.
    """

    templates: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.templates:
            raise JobError("give at least one template")
        if wrong := [template for template in self.templates if template.count("{}") != 1]:
            raise JobError(f"a template holds {{}} once, in the place of the class: {wrong[0]!r}")

    def name(self, folder: str) -> str:
        """What the class of a folder is called."""
        return self.names.get(folder.casefold()) or readable(folder)

    def of(self, class_name: str) -> list[str]:
        """The sentences about a class, one per template."""
        return [template.replace("{}", class_name) for template in self.templates]


@dataclass(frozen=True)
class ClassSet:
    """The images of a set: ``paths[i]`` shows class ``labels[i]``, a number in ``classes``.

    Attributes:
        name: of the folder, without ``_Image``, in lower case.
        classes: the folders, in order of name.
        other_files: how many files lie among the images that have no name of an image.
    """

    name: str
    folder: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    other_files: int


def set_name(folder: str | Path) -> str:
    """``SkyScript_cls_Image`` is the set ``skyscript_cls``."""
    return Path(folder).name.casefold().removesuffix(_SUFFIX)


def readable(folder: str) -> str:
    """The words of a folder's name: ``BareLand`` and ``bare_land`` are "bare land", ``RVPark`` is "RV park"."""
    words = _HUMP.sub(" ", folder.replace("_", " ")).split()
    kept = [word if word.isupper() and 1 < len(word) <= _ACRONYM else word.lower() for word in words]
    return " ".join(kept) or folder


def prompts_of(name: str, templates: Sequence[str] = ()) -> Prompts:
    """The prompts of a set, by its :func:`set_name`; an unknown one gets the general templates, and the log says so.

    Args:
        templates: used instead of the set's own; or the path of one YAML file in the form of ``class_sets.yaml``.

    Raises:
        JobError: a template without ``{}``, or a file that is not in that form or has no templates for the set.
    """
    if len(templates) == 1 and templates[0].endswith((".yaml", ".yml")):
        return _look_up(name, _read(Path(templates[0])))
    packaged = _look_up(name, _read(_PACKAGED), warn=not templates)
    return Prompts(tuple(templates), packaged.names) if templates else packaged


def find_sets(roots: Sequence[str | Path]) -> list[Path]:
    """The set folders among and directly below some folders, in order.

    A folder whose name ends in ``_Image`` is a set, and so is one with no such folder in it.

    Raises:
        JobError: no such folder, or two sets of one name.
    """
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise JobError(f"no such image folder: {root}")
        below = sorted(path for path in root.iterdir() if path.is_dir() and path.name.casefold().endswith(_SUFFIX))
        for folder in [root] if root.name.casefold().endswith(_SUFFIX) or not below else below:
            other = found.setdefault(set_name(folder), folder)
            if other.resolve() != folder.resolve():
                raise JobError(f"{other} and {folder} are both called {set_name(folder)!r}")
    return list(found.values())


def read_set(folder: str | Path) -> ClassSet:
    """List the images of a set, those in folders below a class's folder included; hidden files and folders are none.

    Raises:
        JobError: no such folder, no class folders, or no images in any of them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise JobError(f"no such image folder: {folder}")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise JobError(f"{folder} holds no class folders")
    paths: list[Path] = []
    labels: list[int] = []
    others = 0
    for label, name in enumerate(classes):
        files = [path for path in sorted((folder / name).rglob("*")) if not _hidden(path, folder) and not path.is_dir()]
        images = [path for path in files if path.suffix.lower() in _IMAGES]
        if not images:
            _log.warning("%s has no images", folder / name)
        paths += images
        labels += [label] * len(images)
        others += len(files) - len(images)
    if not paths:
        raise JobError(f"{folder} holds no images")
    return ClassSet(set_name(folder), folder, tuple(classes), tuple(paths), tuple(labels), others)


def _hidden(path: Path, folder: Path) -> bool:
    """Whether a file, or a folder that it lies in below another, is hidden."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


@cache
def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"no such file of templates: {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    sets = content.get("sets", {}) if isinstance(content, dict) else None
    entries = [content, *sets.values()] if isinstance(sets, dict) else [None]
    if not isinstance(entries[0], dict) or not all(_is_entry(entry) for entry in entries):
        raise JobError(f"{path}: give templates (a list of text) and sets (each with its templates and names)")
    return content


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("names", {}), dict):
        return False
    templates = entry.get("templates", [])
    return isinstance(templates, list) and all(isinstance(template, str) for template in templates)


def _look_up(name: str, content: Mapping[str, Any], warn: bool = True) -> Prompts:
    entry = {str(key).casefold(): value for key, value in content.get("sets", {}).items()}.get(name.casefold())
    templates = tuple((entry or {}).get("templates") or content.get("templates", []))
    if not templates:
        raise JobError(f"no templates for the set {name!r}: give it some, or general ones")
    if entry is None and warn:
        _log.warning("no prompts are known for the set %r: it gets the general templates", name)
    names = {str(folder).casefold(): str(words) for folder, words in (entry or {}).get("names", {}).items()}
    return Prompts(templates, names)
