"""One way to configure every program: dataclass defaults < YAML file < ``key=value`` on the command line.

``python python_script/NAME.py [CONFIG] [key=value ...]``: without CONFIG a program reads its own default file.
"""

import difflib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from src.errors import JobError

MISSING = "???"  # how OmegaConf writes a required value that nobody gave
Schema = TypeVar("Schema")


def load_config(schema: type[Schema], path: str | Path | None, overrides: Sequence[str] = ()) -> Schema:
    """An instance of the dataclass ``schema``: its defaults, then the YAML at ``path``, then ``overrides``.

    Keys of nested dataclasses are dotted (``data.path``). A field declared as ``omegaconf.MISSING`` is required:
    absent, null and "" are all refused. Interpolations (``${scores_dir}``) work as in OmegaConf.

    Raises:
        JobError: unreadable YAML, unknown key, wrong type or missing value; the sentence names the key.
    """
    config = OmegaConf.structured(schema)
    defaults = flatten_keys(config)
    try:
        for key, value in [*_read_yaml(path).items(), *map(_parse_override, overrides)]:
            _assign(config, key, value, known=list(defaults))
        given = flatten_keys(config)
        required = [key for key, value in defaults.items() if value == MISSING]
        empty = [k for k in required if given[k] == MISSING or OmegaConf.select(config, k) in ("", None)]
        if empty:
            raise JobError(f"no value for {', '.join(empty)}: set it in the YAML file or as {empty[0]}=VALUE")
        return OmegaConf.to_object(config)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise JobError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error


def run_program(
    main: Callable[[Any], object], schema: type, default_config: Path, argv: Sequence[str] | None = None
) -> None:
    """Calls ``main`` with the configuration that the command line asks for.

    ``--help`` prints the docstring of the module of ``main`` and all keys, with their defaults and the
    comments they have in ``default_config``. A ``JobError`` goes to stderr as one line, with exit status 2.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(args):
        print(help_text(main, schema, default_config))
        return
    with exit_on_job_error():
        paths = [arg for arg in args if "=" not in arg]
        if len(paths) > 1 or any(path.startswith("-") for path in paths):
            raise JobError(f"give one config file and key=value pairs, not {' '.join(paths)} (see --help)")
        main(load_config(schema, paths[0] if paths else default_config, [arg for arg in args if "=" in arg]))


@contextmanager
def exit_on_job_error() -> Iterator[None]:
    """Turn a ``JobError`` into one line on stderr and exit status 2."""
    try:
        yield
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def help_text(main: Callable[..., object], schema: type, default_config: Path) -> str:
    """Module docstring, usage line and a table of all keys: default, comment from ``default_config``."""
    defaults = flatten_keys(OmegaConf.structured(schema))
    defaults |= flatten_keys(OmegaConf.create(_read_yaml(default_config)))
    comments = yaml_comments(default_config.read_text(encoding="utf-8"))
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in defaults.items()}
    shown |= {key: "(required)" for key, value in shown.items() if value in (MISSING, "")}
    width, value_width = max(map(len, shown)), max(map(len, shown.values()))
    table = [f"  {k:<{width}}  {v:<{value_width}}  {comments.get(k, '')}".rstrip() for k, v in shown.items()]
    folder, found, program = inspect.getfile(main).rpartition("python_script/")
    usage = f"usage: python {found}{program if found else Path(folder + program).name} [CONFIG] [key=value ...]"
    head = [inspect.cleandoc(main.__globals__["__doc__"] or ""), usage, f"keys and defaults of {default_config.name}:"]
    return "\n".join(["\n\n".join(head), *table])


def yaml_comments(text: str) -> dict[str, str]:
    """Dotted key -> its comment: the comment lines just above the key, then the one on its own line."""
    comments: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        if entry := re.match(r"( *)([\w-]+):(.*)$", line):
            parents = [parent for parent in parents if parent[0] < len(entry[1])]
            parents.append((len(entry[1]), entry[2]))
            own = entry[3].partition(" #")[2].strip()
            comments[".".join(name for _, name in parents)] = " ".join([*above, own]).strip()
        above = []
    return comments


def flatten_keys(config: DictConfig) -> dict[str, Any]:
    """Dotted key -> value as written: interpolations unresolved, missing values as ``???``."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), inner)
        elif prefix:
            flat[prefix] = value

    visit("", OmegaConf.to_container(config, resolve=False))
    return flat


def _read_yaml(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise JobError(f"no such config file: {path}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise JobError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise JobError(f"{path} must hold 'key: value' lines, not a list")
    return {str(key): value for key, value in content.items()}


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise JobError(f"'{override}' is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return key, text
    # Numbers and booleans stay text for the field's own type to convert: a folder named 007 is no number.
    keep = isinstance(value, str) or text.startswith(("[", "{")) or (value is None and text != "")
    return key, value if keep else text


def _assign(config: DictConfig, key: str, value: Any, known: list[str]) -> None:
    try:
        OmegaConf.update(config, key, value, merge=True)
    except (ConfigKeyError, ConfigAttributeError) as error:
        # OmegaConf names the first unknown part of a dotted key; the user knows it by the whole
        full = key if key.startswith(str(error.full_key)) else str(error.full_key)
        close = difflib.get_close_matches(full, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        raise JobError(f"unknown key {full}; {hint}") from error
