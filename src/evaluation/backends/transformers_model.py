"""Generation in this process, with any image-text-to-text model of transformers whose processor has a chat template.

What makes it fast: requests are answered in batches of alike ones; an image that several of them show is encoded once;
n texts of a request share the forward pass over its prompt, so that only the texts run n times.
"""

import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from src.chat import render
from src.errors import JobError, RecordError
from src.evaluation.backends.base import Answer, Backend, Generation, Options, Prompt, Request, Sampling, Text, Watcher
from src.evaluation.backends.refusals import in_halves
from src.evaluation.backends.sampler import RowSampler, RowStops, RowWatch
from src.model.checkpoint import locate, usable_attention
from src.model.vlm.convert import is_converted, is_published


@dataclass(frozen=True, kw_only=True)
class TransformersOptions(Options):
    """Options of the back end ``transformers``.

    Attributes:
        device: ``auto`` is CUDA where there is one, else the CPU.
        dtype: ``auto`` is bfloat16 on a GPU and float32 on the CPU.
        batch_size: texts that are generated side by side.
        max_pixels: shrink images to at most so many pixels; None keeps the processor's own limit.
        max_prompt_tokens: a longer prompt, image tokens included, is an error of its request.
        image_library: resizes images, ``pil`` or ``torchvision``, which is faster; None: ``pil`` for converted
            checkpoints, whose authors used it, else ``torchvision``.
        trust_remote_code: run code that comes with the model.
    """

    device: str = "auto"
    dtype: str | torch.dtype = "auto"
    batch_size: int = 16
    max_pixels: int | None = None
    max_prompt_tokens: int = 16384
    image_library: Literal["pil", "torchvision"] | None = None
    trust_remote_code: bool = False
    window: int = 64


class TransformersBackend(Backend):
    """See the module. Greedy texts are those that the model's own ``generate`` gives to each request alone."""

    options_type = TransformersOptions
    options: TransformersOptions

    def __init__(self, model: str | Path, options: TransformersOptions | None = None):
        self.options = options = options or TransformersOptions()
        path = locate(model)
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = options.dtype
        if dtype == "auto":
            dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=dtype,
                device_map={"": device},
                attn_implementation=usable_attention(None, device != "cpu", dtype not in (torch.float32, "float32")),
                trust_remote_code=options.trust_remote_code,
            ).eval()
            library = options.image_library or ("pil" if is_converted(self.model.config) else None)
            self.processor: Any = AutoProcessor.from_pretrained(
                path, trust_remote_code=options.trust_remote_code, **({"backend": library} if library else {})
            )
        except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
            if is_published(path):
                command = "python python_script/convert_checkpoint.py"
                raise JobError(f"{path!r} is in its published layout; convert it first: {command}") from error
            raise JobError(f"cannot load {path!r} as an image-text-to-text model: {error}") from error
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None or not getattr(self.processor, "image_processor", None):
            raise JobError(f"model {path!r} has no processor for images and text")
        if not (self.processor.chat_template or tokenizer.chat_template):
            raise JobError(f"model {path!r} has no chat template")
        if self.model.config.is_encoder_decoder:
            raise JobError(f"model {path!r} has an encoder for its prompts; only decoders are known here")
        tokenizer.padding_side = "left"
        if options.max_pixels:
            self._limit_pixels(options.max_pixels)
        self._keep_only_the_ends()
        self._forbidden = {
            token for name in ("image_token_id", "video_token_id") if (token := getattr(self.model.config, name, None))
        }
        # What is needed to go on from a shared prompt: a cache that can be cut and repeated row by row.
        layers = DynamicCache(config=self.model.config.get_text_config()).layers
        self._takes_features = "mm_encoder_outputs" in inspect.signature(self.model.forward).parameters
        self._repeats = all(type(layer) is DynamicLayer for layer in layers)

    def _limit_pixels(self, pixels: int) -> None:
        size = self.processor.image_processor.size
        if getattr(size, "longest_edge", None) is None or getattr(size, "shortest_edge", None) is None:
            raise JobError("max_pixels: this model's image processor has a fixed size")
        self.processor.image_processor.size = replace(size, longest_edge=pixels)

    def _keep_only_the_ends(self) -> None:
        """Forget the checkpoint's own sampling (Qwen2-VL's has a top_k of 1), but not where its texts end."""
        own, tokenizer = self.model.generation_config.eos_token_id, self.processor.tokenizer
        ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
        self._ends = sorted(ends)
        if not self._ends:
            raise JobError("this model names no token that ends its texts")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._ends[0]
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = pad
        self.model.generation_config = GenerationConfig(eos_token_id=self._ends, pad_token_id=pad, do_sample=False)

    def answer(self, prompts: Sequence[Prompt], done: Callable[[int], object]) -> list[Answer]:
        """See the base class. Prompts with the same images, or images of the same size, go side by side."""
        answers: dict[int, Answer] = {}
        batch: list[int] = []
        for number in sorted(range(len(prompts)), key=lambda number: _likeness(prompts[number])):
            if batch and sum(prompts[k].sampling.draws for k in [*batch, number]) > self.options.batch_size:
                answers |= self._batch(prompts, batch, done)
                batch = []
            batch.append(number)
        if batch:
            answers |= self._batch(prompts, batch, done)
        return [answers[number] for number in range(len(prompts))]

    def watch(self, request: Request, sampling: Sampling, seen: Watcher) -> Generation:
        """See the base class; ``seen`` is called after every token. At most ``batch_size`` texts.

        Raises:
            ValueError: more texts than that.
        """
        if sampling.draws > self.options.batch_size:
            raise ValueError(f"{sampling.draws} texts, but only {self.options.batch_size} are generated side by side")
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:
            [window] = self._windows([request])
            [prompt] = self._read(window, sampling, decoder)
        if isinstance(prompt, RecordError):
            return Generation(error=prompt)
        [answer] = in_halves([prompt], partial(self._generate, seen=seen), (ValueError, torch.OutOfMemoryError))
        return Generation(error=answer) if isinstance(answer, RecordError) else prompt.finished(answer)

    def _batch(
        self, prompts: Sequence[Prompt], batch: Sequence[int], done: Callable[[int], object]
    ) -> dict[int, Answer]:
        refused = (ValueError, torch.OutOfMemoryError)
        made = in_halves([prompts[number] for number in batch], self._generate, refused)
        done(len(batch))
        return dict(zip(batch, made, strict=True))

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Prompt], seen: Watcher | None = None) -> list[Answer]:
        """Texts of some prompts; a prompt with more draws than ``batch_size`` gets them in several goes.

        Args:
            seen: see :meth:`watch`; told of one go at a time.

        Raises:
            ValueError: the processor or the model refuses one of the prompts.
            torch.OutOfMemoryError: they do not fit the GPU together.
        """
        rows = [(number, draw) for number, prompt in enumerate(prompts) for draw in range(prompt.sampling.draws)]
        texts: list[Answer] = [[] for _ in prompts]
        for start in range(0, len(rows), self.options.batch_size):
            some = rows[start : start + self.options.batch_size]
            numbers = [number for number, _ in some]
            distinct = sorted(set(numbers)) if self._repeats else numbers
            owner = [distinct.index(number) for number in numbers] if self._repeats else list(range(len(numbers)))
            inputs = self._inputs([prompts[number] for number in distinct])
            made = self._decode(inputs, owner, [(prompts[number], draw) for number, draw in some], seen)
            for (number, _), text in zip(some, made, strict=True):
                texts[number].append(text)  # type: ignore[union-attr]
        return texts

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What the model's ``generate`` takes, left-padded, every image encoded once.

        Raises:
            RecordError: ``text_too_long``.
        """
        texts = [render(self.processor, prompt.messages, open_turn=True) for prompt in prompts]
        images = [prompt.images for prompt in prompts]
        begin = self.processor.tokenizer.bos_token
        # A template that writes the token that begins a text leaves no need for the tokeniser to add it.
        options = {"add_special_tokens": False} if begin and all(text.startswith(begin) for text in texts) else {}
        made = self.processor(
            text=texts, images=images if any(images) else None, padding=True, return_tensors="pt", **options
        )
        inputs = dict(made.to(self.model.device))
        length = int(inputs["attention_mask"].sum(-1).max())
        if length > self.options.max_prompt_tokens:
            raise RecordError("text_too_long", f"{length} tokens; the limit is {self.options.max_prompt_tokens}")
        return self._share_images(inputs, prompts)

    def _share_images(self, inputs: dict[str, Any], prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Replace pixels by features where some image occurs more than once and the model takes features."""
        keys = [key for prompt in prompts for key in prompt.keys]
        images = dict(zip(keys, (image for prompt in prompts for image in prompt.images), strict=True))
        if len(images) == len(keys) or not self._takes_features:
            return inputs
        vision = self.processor.image_processor(images=list(images.values()), return_tensors="pt")
        if "num_patches" in vision:  # InternVL's processor cuts images into pieces, which this alone does not
            return inputs
        encoded = self.model.get_image_features(**vision.to(self.model.device), return_dict=True).pooler_output
        features = dict(zip(images, encoded, strict=True))
        shown: Any = [features[key] for key in keys]
        output = BaseModelOutputWithPooling(pooler_output=shown)
        return {name: value for name, value in inputs.items() if name != "pixel_values"} | {
            "mm_encoder_outputs": {"image": output}
        }

    def _decode(
        self,
        inputs: dict[str, Any],
        owner: list[int],
        rows: Sequence[tuple[Prompt, int]],
        seen: Watcher | None = None,
    ) -> list[Text]:
        """One text for each row.

        Args:
            inputs: of each distinct prompt.
            owner: which of them each row goes on from.
            rows: prompt and number of the draw.
            seen: see :meth:`watch`.
        """
        samplings = [prompt.sampling for prompt, _ in rows]
        if owner != list(range(len(inputs["input_ids"]))):
            inputs = self._repeated(inputs, torch.tensor(owner, device=self.model.device))
        prompt_length = inputs["input_ids"].shape[1]
        stops = RowStops(samplings, prompt_length, self._ends, self.processor.tokenizer.decode)
        ends = [stops, RowWatch(seen, stops)] if seen else [stops]
        sampler = RowSampler(samplings, [prompt.seed(draw) for prompt, draw in rows], self._forbidden)
        longest = max(sampling.max_new_tokens for sampling in samplings)
        ids = self.model.generate(
            **inputs, logits_processor=[sampler], stopping_criteria=ends, max_new_tokens=longest, do_sample=False
        )
        return stops.texts(ids)

    def _repeated(self, inputs: dict[str, Any], owner: Tensor) -> dict[str, Any]:
        """Run the prompts once and repeat what the model remembers of them, a row for each entry of ``owner``."""
        first = self.model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
        cache = first.past_key_values
        cache.crop(-1)  # the last token of the prompt runs again, for its logits
        cache.batch_select_indices(owner)
        base = self.model.base_model
        if getattr(base, "rope_deltas", None) is not None:  # where Qwen's texts continue in position
            base.rope_deltas = base.rope_deltas[owner]
        return {
            "input_ids": inputs["input_ids"][owner],
            "attention_mask": inputs["attention_mask"][owner],
            "past_key_values": cache,
        }


def _likeness(prompt: Prompt) -> tuple[int, tuple[str, ...], int]:
    area = sum(image.width * image.height for image in prompt.images)
    return area, prompt.keys, sum(len(part["text"]) for m in prompt.messages for part in m["content"] if "text" in part)
