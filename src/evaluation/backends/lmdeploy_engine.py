"""Generation by LMDeploy's TurboMind in this process, on a GPU, in the environment of ``lmdeploy_env_setup.sh``.

Written for LMDeploy 0.18, which gives one text for a prompt, so that n texts are n prompts, and whose ``stop_words``
end a text at any token that contains one, so that texts are cut at stop strings here instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from src.chat import Message
from src.errors import JobError, RecordError
from src.evaluation.backends.base import Answer, Options, Prompt, Text
from src.evaluation.backends.engine import EngineBackend
from src.evaluation.backends.refusals import refusal
from src.model.checkpoint import locate


@dataclass(frozen=True, kw_only=True)
class LmdeployOptions(Options):
    """Options of the back end ``lmdeploy``; the published values where there are any.

    Attributes:
        dtype: of weights and activations.
        session_len: tokens of a prompt, images included, and its text.
        tp: GPUs that share the model.
        cache_max_entry_count: share of the free GPU memory for what the model remembers of prompts.
        enable_prefix_caching: keep it between prompts that begin alike, as the n prompts of a request do.
        vision_batch: images that are encoded side by side.
        trust_remote_code: run code that comes with the model.
    """

    dtype: str = "auto"
    session_len: int = 8192
    tp: int = 1
    cache_max_entry_count: float = 0.8
    enable_prefix_caching: bool = True
    vision_batch: int = 8
    trust_remote_code: bool = False
    window: int = 512


class LmdeployBackend(EngineBackend):
    """See the module."""

    options_type = LmdeployOptions
    options: LmdeployOptions

    def __init__(self, model: str | Path, options: LmdeployOptions | None = None):
        self.options = options = options or LmdeployOptions()
        try:
            import lmdeploy
        except ImportError as error:
            message = f"the back end lmdeploy needs the package lmdeploy: bash lmdeploy_env_setup.sh ({error})"
            raise JobError(message) from error
        self._parameters = lmdeploy.GenerationConfig
        try:
            self.engine = lmdeploy.pipeline(
                locate(model),
                backend_config=lmdeploy.TurbomindEngineConfig(**self.engine_arguments()),
                vision_config=lmdeploy.VisionConfig(max_batch_size=options.vision_batch),
                trust_remote_code=options.trust_remote_code,
            )
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            raise JobError(f"LMDeploy cannot run {str(model)!r}: {error}") from error

    def engine_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``lmdeploy.TurbomindEngineConfig``."""
        options = self.options
        return {
            "dtype": options.dtype,
            "session_len": options.session_len,
            "tp": options.tp,
            "cache_max_entry_count": options.cache_max_entry_count,
            "enable_prefix_caching": options.enable_prefix_caching,
        }

    @staticmethod
    def sampling_arguments(prompt: Prompt, draw: int) -> dict[str, Any]:
        """Keyword arguments of ``lmdeploy.GenerationConfig``."""
        sampling = prompt.sampling
        return {
            "do_sample": sampling.temperature > 0,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_new_tokens": sampling.max_new_tokens,
            "random_seed": prompt.seed(draw),
            "skip_special_tokens": not sampling.special_tokens,
        }

    def infer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """See the base class."""
        draws = [(prompt, draw) for prompt in prompts for draw in range(prompt.sampling.draws)]
        responses = iter(
            self.engine.infer(
                [prompt.engine_messages(_part) for prompt, _ in draws],
                gen_config=[self._parameters(**self.sampling_arguments(prompt, draw)) for prompt, draw in draws],
            )
        )
        answers: list[Answer] = []
        for prompt in prompts:
            own = list(islice(responses, prompt.sampling.draws))
            if failed := next((each for each in own if _failed(each)), None):
                why = f"the model refuses it: {failed.error_message or failed.finish_reason}"
                full = failed.finish_reason == "length"  # there is no room for a text
                answers.append(RecordError("text_too_long", why) if full else refusal(why))
            else:
                answers.append([Text(each.text, each.finish_reason) for each in own])
        return answers


def _part(image: Any) -> Message:
    """LMDeploy's form of an image that is already open."""
    return {"type": "image_data", "image_data": {"data": image}}


def _failed(response: Any) -> bool:
    """Whether there is no text; where a prompt leaves no room for one, LMDeploy calls an empty text too long."""
    nothing = response.finish_reason == "length" and not response.generate_token_len
    return nothing or response.finish_reason not in ("stop", "length")
