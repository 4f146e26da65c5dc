"""What holds for the project as a whole: its layout, layers, lock, and what may be committed."""

import ast
import graphlib
import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("python_script/**/*.py")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Arrows only downwards: a module imports from its own package and from lower ranks, never sideways.
RANKS = {"errors": 0, "config": 1, "model": 2, "chat": 3, "dataset": 4, "curation": 5, "rewards": 6}
RANKS |= {"training": 7, "evaluation": 7, "serving": 8, "experiment": 8, "benchmark": 9}
# Back ends that a machine may lack: imported only where they are used.
OPTIONAL = {"flash_attn", "liger_kernel", "lmdeploy", "ray", "vllm"}

MAX_LINES = 350
MAX_BYTES = 16 * 2**20
MACHINE_PATH = re.compile(r"(?<![\w.-])/(?:home|root|work|Users)/[\w.]")
INDEX_HOST = re.compile(r"pypi[.]org|pythonhosted[.]org|(?:extra-)?index-url[ =]|find-links[ =]")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module that ``tree`` imports, inside functions too; for ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def committed_files() -> list[Path]:
    """Files that git holds or would take; a folder without git cannot tell."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_sources_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def layer_of(module: str) -> str | None:
    """``src.model.ranking`` is in the layer ``model``; a module outside ``src`` is in none."""
    parts = module.split(".")
    return parts[1] if parts[0] == "src" and len(parts) > 1 else None


def is_downward(importer: str, imported: str) -> bool:
    own, other = layer_of(importer), layer_of(imported)
    if imported.split(".", maxsplit=1)[0] in {"python_script", "customVeRL", "tests"}:
        return False
    return own is None or other is None or other == own or RANKS[other] < RANKS[own]


def test_layers_import_only_downwards() -> None:
    imports = [
        (module_name(path), imported)
        for path in ROOT.glob("src/**/*.py")
        for imported in imported_modules(ast.parse(path.read_text()))
    ]
    assert [pair for pair in imports if not is_downward(*pair)] == []
    assert not is_downward("src.model.qwen_reward", "src.curation.job")
    assert not is_downward("src.evaluation.runner", "src.training.clip")


def test_modules_import_without_cycles() -> None:
    modules = {module_name(path): path for path in ROOT.glob("src/**/*.py")}
    graph = {}
    for name, path in modules.items():
        body = ast.parse(path.read_text()).body
        top_level = ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        graph[name] = {other for other in imported_modules(top_level) if other in modules} - {name, "src"}
    graphlib.TopologicalSorter(graph).prepare()


IMPORT_ALL = """
import importlib, sys
for name in {optional!r}:
    sys.modules[name] = None  # import raises ImportError, find_spec finds nothing
for name in {modules!r}:
    importlib.import_module(name)
import torch
assert not torch.cuda.is_initialized(), "an import touched the GPU"
"""


def test_every_module_imports_without_gpu_and_optional_packages() -> None:
    modules = [module_name(path) for path in sorted(ROOT.glob("src/**/*.py"))]
    program = IMPORT_ALL.format(optional=sorted(OPTIONAL), modules=modules)
    command = [sys.executable, "-c", program]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_configs_parse() -> None:
    paths = sorted(ROOT.glob("config/**/*.yaml"))
    assert paths
    for path in paths:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_no_machine_path_and_no_index_host_is_committed() -> None:
    found = []
    for path in committed_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # an image or a weight file
        for number, line in enumerate(lines, 1):
            if MACHINE_PATH.search(line) or INDEX_HOST.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_no_large_file_is_committed() -> None:
    assert [path for path in committed_files() if path.stat().st_size > MAX_BYTES] == []


@pytest.mark.parametrize("folder", ["home", "root", "work", "Users"])
def test_machine_paths_are_recognised(folder: str) -> None:
    assert MACHINE_PATH.search(f'open("/{folder}/me/x.csv")')
    assert MACHINE_PATH.search(f"cd /{folder}/.cache")
    assert not MACHINE_PATH.search(f"https://example.com/{folder}/x src/{folder}/x /path/to/{folder}")


def locked_versions() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [re.fullmatch(r"([\w.-]+)==([\w.!]+)", line) for line in lines if not line.startswith("#")]
    assert all(pins), "a line of requirements.lock is not NAME==VERSION"
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def test_lock_covers_the_direct_dependencies() -> None:
    locked = locked_versions()
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(locked[name]), f"{name}=={locked[name]} does not satisfy {line}"


def test_lock_is_complete() -> None:
    """Every requirement of an installed locked package is itself locked, to a version that satisfies it."""
    locked = locked_versions()
    broken = []
    for name in locked:
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = locked.get(canonicalize_name(requirement.name), "")
            if not version or not requirement.specifier.contains(version, prereleases=True):
                broken.append(f"{name} wants {line}, the lock has {version or 'nothing'}")
    assert broken == []


def test_imported_packages_are_declared() -> None:
    lines = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    providers = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in SOURCES:
        for imported in imported_modules(ast.parse(path.read_text())):
            package = imported.split(".")[0]
            if package in sys.stdlib_module_names or package in OPTIONAL | {"src"}:
                continue
            if not declared & {canonicalize_name(name) for name in providers.get(package, [package])}:
                undeclared.add(f"{path.relative_to(ROOT)} imports {package}")
    assert undeclared == set()
