"""Rollout without an inference engine: a Ray actor that answers requests together by ``generate`` of transformers.

Importing it makes ``actor_rollout_ref.rollout.name=hf`` known to verl in that process.
"""

import os
from collections.abc import Sequence
from typing import Any

import ray
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from scorers_verl.reward import MicroBatches
from src.chat import RESERVED

WAIT = 0.3  # seconds in which requests become a batch; a step asks for all of its responses at once


class Generator:
    """A Qwen2-VL with its processor that continues prompts of token ids and images.

    Args:
        path: of the model.
        lengths: longest response in tokens.
    """

    def __init__(self, path: str, response_length: int, seed: int):
        torch.manual_seed(seed)
        processor = AutoProcessor.from_pretrained(path)
        self.images, self.tokenizer = processor.image_processor, processor.tokenizer
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self.response_length = response_length
        # In a response they would claim features of images that do not exist.
        self.reserved = [self.tokenizer.convert_tokens_to_ids(token) for token in RESERVED]

    def load(self, weights: dict[str, Any]) -> None:
        """Takes all weights over. Raises RuntimeError if any is missing or unknown."""
        tied = getattr(self.model, "_tied_weights_keys", None) or []
        found = self.model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
        missing = [key for key in found.missing_keys if key not in tied]
        if missing or found.unexpected_keys:
            raise RuntimeError(f"weights of another model: missing {missing}, unknown {found.unexpected_keys}")
        self.model.tie_weights()

    @torch.inference_mode()
    def generate(self, asked: Sequence[tuple[list[int], list[Any], dict[str, Any]]]) -> list[TokenOutput]:
        """Continues prompts that have the same sampling.

        Args:
            asked: for each its token ids, with one for each token of its images; the images; ``temperature`` (0: the
                likeliest token), ``top_p`` and ``top_k`` (-1: all).

        Returns:
            Responses with the log-probability of each token under the whole distribution at that temperature, which is
            what verl's trainer computes.
        """
        sampling = asked[0][2]
        greedy = not sampling["temperature"]
        temperature = 1.0 if greedy else sampling["temperature"]
        inputs = self._inputs([(ids, images) for ids, images, _ in asked])
        how: dict[str, Any] = {"do_sample": not greedy}
        if not greedy:
            how |= {"temperature": temperature, "top_p": sampling["top_p"], "top_k": max(0, sampling["top_k"])}
        found = self.model.generate(
            **inputs,
            **how,
            max_new_tokens=self.response_length,
            suppress_tokens=self.reserved,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
            use_cache=True,
        )
        responses = found.sequences[:, inputs["input_ids"].shape[1] :]
        scores = torch.stack(found.logits, 1).float() / temperature
        log_probs = scores.log_softmax(-1).gather(-1, responses[..., None])[..., 0]
        return [self._output(ids.tolist(), own.tolist()) for ids, own in zip(responses, log_probs, strict=True)]

    def _inputs(self, prompts: Sequence[tuple[list[int], list[Any]]]) -> dict[str, torch.Tensor]:
        """Prompts padded on the left; positions go by the mask and by which tokens are those of images."""
        width = max(len(ids) for ids, _ in prompts)
        ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for k, (own, _) in enumerate(prompts):
            ids[k, width - len(own) :] = torch.tensor(own)
            mask[k, width - len(own) :] = 1
        kinds = (ids == self.model.config.image_token_id).long() * mask
        inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
        if images := [image for _, own in prompts for image in own or []]:
            prepared = self.images(images=images, return_tensors="pt")
            inputs |= {"pixel_values": prepared["pixel_values"], "image_grid_thw": prepared["image_grid_thw"]}
        return inputs

    def _output(self, ids: list[int], log_probs: list[float]) -> TokenOutput:
        end = self.tokenizer.eos_token_id
        length = ids.index(end) + 1 if end in ids else len(ids)
        return TokenOutput(token_ids=ids[:length], log_probs=log_probs[:length], stop_reason="completed")


@ray.remote(num_cpus=1)
class HfServer:
    """A :class:`Generator` as verl asks a rollout server."""

    def __init__(self, path: str, response_length: int, seed: int):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._generator = Generator(path, response_length, seed)
        self._batches = MicroBatches(self._generate, 64, WAIT, threads=1)
        self._step: int | None = None

    async def generate(
        self, prompt_ids: Sequence[int], sampling_params: dict[str, Any], image_data: Any = None, **_: Any
    ) -> TokenOutput:
        output = await self._batches((list(prompt_ids), list(image_data or []), sampling_params))
        return output.model_copy(update={"extra_fields": {"global_steps": self._step}})

    def _generate(self, asked: Sequence[Any]) -> list[TokenOutput]:
        outputs: dict[int, TokenOutput] = {}
        numbers = range(len(asked))
        for sampling in {repr(asked[k][2]) for k in numbers}:
            same = [k for k in numbers if repr(asked[k][2]) == sampling]
            outputs |= dict(zip(same, self._generator.generate([asked[k] for k in same]), strict=True))
        return [outputs[k] for k in numbers]

    async def load(self, weights: dict[str, Any], step: int | None) -> None:
        self._generator.load(weights)
        self._step = step

    async def nothing(self, *_: Any, **__: Any) -> None:
        """Memory for weights and caches is neither taken nor given back."""

    wake_up = sleep = abort_all_requests = resume_generation = nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


def _name(replica_rank: int) -> str:
    return f"scorers_hf_server_{replica_rank}"


class HfReplica(RolloutReplica):
    async def launch_servers(self) -> None:
        path, length = self.model_config.path, self.config.response_length
        name = _name(self.replica_rank)
        server = HfServer.options(name=name, max_concurrency=self.max_concurrency).remote(
            path, length, self.config.seed + self.replica_rank
        )
        await server.nothing.remote()
        self.servers, self._server_handle, self._server_address = [server], server, name


class WeightSender(BaseRollout):
    """The trainer's side: hands the weights of every step to the server of its replica."""

    async def resume(self, tags: list[str]) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(self, weights: Any, wire_format: str = "named_tensors", **options: Any) -> None:
        if wire_format != "named_tensors" or options.get("peft_config"):
            raise NotImplementedError("the CPU rollout takes whole weights, not differences or adapters")
        whole = {name: weight.detach().float().cpu().numpy() for name, weight in weights}  # by all ranks together
        size = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        rank = int(os.environ["RANK"])
        if rank % size == 0:
            server = ray.get_actor(_name(rank // size))
            await server.load.remote(whole, options.get("global_steps"))


_ROLLOUT_REGISTRY["hf", "async"] = "scorers_verl.cpu_rollout.WeightSender"
RolloutReplicaRegistry.register("hf", lambda: HfReplica)
