"""Generation by vLLM in this process, on a GPU, in the environment that ``vllm_env_setup.sh`` makes.

Written for vLLM 0.33, whose ``LLM`` takes neither ``device`` nor ``disable_mm_preprocessor_cache`` any more. How far a
seed makes texts independent of the other requests is up to vLLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.chat import Message
from src.errors import JobError
from src.evaluation.backends.base import Answer, Options, Prompt, Text
from src.evaluation.backends.engine import EngineBackend
from src.model.checkpoint import locate


@dataclass(frozen=True, kw_only=True)
class VllmOptions(Options):
    """Options of the back end ``vllm``; the published values where there are any.

    Attributes:
        dtype: of weights and activations.
        max_model_len: tokens of a prompt, images included, and its text.
        gpu_memory_utilization: share of the GPU's memory that vLLM may take.
        tensor_parallel_size: GPUs that share the model.
        enforce_eager: do without CUDA graphs, which saves memory and start-up time and costs speed.
        max_images: images in one request.
        max_pixels: shrink images to at most so many pixels (Qwen's models); None keeps the processor's own limit.
        trust_remote_code: run code that comes with the model.
    """

    dtype: str = "auto"
    max_model_len: int = 4096
    gpu_memory_utilization: float = 0.6
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    max_images: int = 4
    max_pixels: int | None = 1280 * 28 * 28
    trust_remote_code: bool = False
    window: int = 512


class VllmBackend(EngineBackend):
    """See the module."""

    options_type = VllmOptions
    options: VllmOptions

    def __init__(self, model: str | Path, options: VllmOptions | None = None):
        self.options = options or VllmOptions()
        try:
            import vllm
        except ImportError as error:
            raise JobError(f"the back end vllm needs the package vllm: bash vllm_env_setup.sh ({error})") from error
        self._parameters = vllm.SamplingParams
        try:
            self.engine = vllm.LLM(**self.engine_arguments(locate(model)))
        except (OSError, ValueError, RuntimeError) as error:
            raise JobError(f"vLLM cannot run {str(model)!r}: {error}") from error

    def engine_arguments(self, model: str) -> dict[str, Any]:
        """Keyword arguments of ``vllm.LLM``."""
        options = self.options
        pixels = {"mm_processor_kwargs": {"max_pixels": options.max_pixels}} if options.max_pixels else {}
        return {
            "model": model,
            "dtype": options.dtype,
            "max_model_len": options.max_model_len,
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "tensor_parallel_size": options.tensor_parallel_size,
            "enforce_eager": options.enforce_eager,
            "limit_mm_per_prompt": {"image": options.max_images},
            "trust_remote_code": options.trust_remote_code,
            **pixels,
        }

    @staticmethod
    def sampling_arguments(prompt: Prompt) -> dict[str, Any]:
        """Keyword arguments of ``vllm.SamplingParams``."""
        sampling = prompt.sampling
        return {
            "n": sampling.draws,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "seed": prompt.seed(0),
            "stop": list(sampling.stop),
            "skip_special_tokens": not sampling.special_tokens,
        }

    def infer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """See the base class."""
        outputs = self.engine.chat(
            messages=[prompt.engine_messages(_part) for prompt in prompts],
            sampling_params=[self._parameters(**self.sampling_arguments(prompt)) for prompt in prompts],
            use_tqdm=False,
        )
        return [
            [Text(text.text, "length" if text.finish_reason == "length" else "stop") for text in output.outputs]
            for output in outputs
        ]


def _part(image: Any) -> Message:
    """vLLM's form of an image that is already open."""
    return {"type": "image_pil", "image_pil": image}
