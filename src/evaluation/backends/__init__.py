"""Texts of a vision-language model, by one interface whatever runs the model.

>>> from src.evaluation.backends import Request, Sampling, get_backend
>>> model = get_backend("transformers", "Qwen/Qwen2-VL-7B-Instruct")
>>> requests = [Request("How many ships?", ["harbour.jpg"]), Request("What changed?", ["2019.jpg", "2024.jpg"])]
>>> model.generate(requests, Sampling(n=4, temperature=0.85, seed=1))        # a list of four texts for each

``generate`` stops at the first request that cannot be answered; ``stream`` yields a :class:`Generation` for each, with
its texts or its error, and goes on.
"""

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any

from src.errors import JobError
from src.evaluation.backends.base import Backend, Generation, Options, Request, Sampling
from src.evaluation.backends.lmdeploy_engine import LmdeployBackend
from src.evaluation.backends.openai_server import OpenAIBackend
from src.evaluation.backends.transformers_model import TransformersBackend
from src.evaluation.backends.vllm_engine import VllmBackend

__all__ = ["BACKENDS", "Backend", "Generation", "Options", "Request", "Sampling", "backend_options", "get_backend"]

BACKENDS: dict[str, type[Backend]] = {
    "transformers": TransformersBackend,
    "vllm": VllmBackend,
    "lmdeploy": LmdeployBackend,
    "openai": OpenAIBackend,
}


def get_backend(name: str, model: str | Path, **options: Any) -> Backend:
    """Load a model.

    Args:
        name: one of ``BACKENDS``.
        model: folder or hub id; for ``openai`` the name under which the server knows it, or "" for the one it serves.
        options: fields of the back end's options, such as :class:`TransformersOptions`.

    Raises:
        JobError: unknown name or option, missing package, no such model or server.
    """
    return BACKENDS[_known(name)](model, backend_options(name, **options))


def backend_options(name: str, **options: Any) -> Any:
    """Return the options of a back end.

    Raises:
        JobError: unknown name or option.
    """
    kind = BACKENDS[_known(name)].options_type
    known = [each.name for each in fields(kind)]
    if unknown := [key for key in options if key not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise JobError(f"back end {name} has no option {unknown[0]}; {hint}")
    return kind(**options)


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise JobError(f"unknown back end {name!r}; known: {', '.join(BACKENDS)}")
    return name
