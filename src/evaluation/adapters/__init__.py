"""Adapters by name: a back end, the family of the model that it runs, and its system prompt."""

import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from src.chat import THINKING, thinking_prompt
from src.errors import JobError
from src.evaluation.adapters.base import Adapter, Family
from src.evaluation.adapters.families import FAMILIES
from src.evaluation.backends import BACKENDS, backend_options, get_backend
from src.evaluation.backends.later import LaterBackend
from src.model.checkpoint import locate

__all__ = ["MODEL_TYPES", "Adapter", "Family", "family_of", "get_adapter"]

MODEL_TYPES: dict[str, tuple[str, str | None]] = {
    **{backend: (backend, None) for backend in BACKENDS},
    **{family: ("transformers", family) for family in FAMILIES},
}
"""By name the back end and the family; None: the family is found by :func:`family_of`."""

_BY_TYPE = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl", "llava": "llava", "llava_next": "llava"}
_BY_TYPE |= {"internvl": "internvl", "internvl_chat": "internvl", "lhrs": "lhrs"}
_BY_NAME = (  # the first that occurs in the name without - and _
    ("rsr1", "qwen2vl_rs_r1"),
    *(("qwen2.5vl", "qwen2_5_vl"), ("qwen2vl", "qwen2_vl"), ("internvl3", "internvl3"), ("internvl", "internvl")),
    *(("geochat", "geochat"), ("skysense", "skysensegpt"), ("vhm", "vhm"), ("lhrs", "lhrs"), ("llava", "llava")),
)


def get_adapter(
    model_type: str,
    model: str,
    family: str | None = None,
    reasoning: str | Path | None = None,
    later: bool = False,
    **options: Any,
) -> Adapter:
    """Load a model with what its family needs.

    Args:
        model_type: a key of ``MODEL_TYPES``.
        model: folder or hub id; for ``openai`` the name under which the server knows it, or "".
        family: a key of ``FAMILIES``, instead of the one found.
        reasoning: file of the reasoning prompt (see :func:`src.chat.thinking_prompt`), for any family.
        later: load the model when it is first asked, and never if it is not.
        options: of the back end (see :func:`src.evaluation.backends.get_backend`).

    Raises:
        JobError: an unknown name, no such prompt, or the back end cannot load the model.
    """
    backend, own = _known(model_type, MODEL_TYPES, "model type")
    if backend != "openai" and (Path(model).is_absolute() or model.count("/") > 1) and not Path(locate(model)).exists():
        raise JobError(f"there is no model {model}")
    found = _known(family, FAMILIES, "family") if family else FAMILIES[own or family_of(model)]
    reasoning = reasoning or (THINKING if found.thinks else None)
    system = thinking_prompt(reasoning) if reasoning else None
    if later:
        backend_options(backend, **options)
        return Adapter(LaterBackend(lambda: get_backend(backend, model, **options)), found, system)
    return Adapter(get_backend(backend, model, **options), found, system)


def family_of(model: str) -> str:
    """The family of a model, a key of ``FAMILIES``: by its configuration, else its name, else ``generic``.

    Raises:
        JobError: a converted checkpoint, whose configuration is LLaVA's for several families.
    """
    config = _config(model)
    squeezed = "".join(c for c in Path(model).name.lower() if c not in "-_")
    by_name = next((family for part, family in _BY_NAME if part in squeezed), None)
    kind = config.get("model_type", "")
    if kind == "llava" and "compat" in config and by_name not in ("geochat", "skysensegpt", "vhm"):
        raise JobError(f"{model} is a converted checkpoint: say which with --model_type geochat, skysensegpt or vhm")
    if (kind == "llava" and "compat" in config) or kind not in _BY_TYPE or by_name in ("internvl3", "qwen2vl_rs_r1"):
        return by_name or "generic"
    return _BY_TYPE[kind]


def _config(model: str) -> dict[str, Any]:
    if not model:
        return {}  # what a server serves
    try:
        path = Path(locate(model))
        file = path / "config.json" if path.is_dir() else cached_file(model, "config.json", local_files_only=True)
        content = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):
        return {}  # a server's name, or a model that the back end will complain about
    return content if isinstance(content, dict) else {}


def _known(name: str, table: dict[str, Any], what: str) -> Any:
    if name not in table:
        raise JobError(f"unknown {what} {name!r}; known: {', '.join(table)}")
    return table[name]
