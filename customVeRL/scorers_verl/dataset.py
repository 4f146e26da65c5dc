"""Rows of a data set as prompts of verl: in the thinking format, checked before training, measured in real tokens.

A row has a prompt (text, or turns), an answer, maybe images (encoded bytes, ``{bytes, path}``, a path, a picture, or a
list of these; null where it has none), its type and the problem that the answer is scored as an answer to. Which
columns these are, and which reward a type has, is said under ``data`` of ``examples/config/base.yaml``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from qwen_vl_utils.vision_process import IMAGE_MAX_TOKEN_NUM, IMAGE_MIN_TOKEN_NUM, smart_resize
from verl.utils.dataset.rl_dataset import RLHFDataset

from src.chat import IMAGE, prompt_messages, thinking_prompt
from src.dataset.images import open_image
from src.errors import JobError, RecordError
from src.rewards.rewards import REWARDS, BoxOverlap, RewardRow

NO_VALIDATION = "row_of_the_training_data"  # what metrics call the one row that stands in for missing data.val_files


class GrpoDataset(RLHFDataset):
    """verl's data set on our rows.

    A row that cannot be used is left out, and the counts of rows are printed by kind of error. Prompts above
    ``data.max_prompt_length`` tokens, those of images included, are left out with ``data.filter_overlong_prompts``;
    nothing is ever cut. Without ``data.val_files``, verl gets one row of the training data, as it asks for some.

    Raises:
        JobError: no such column, no usable row, a prompt that is too long where these are not to be left out, or
            ``data.format_prompt`` names no file with a prompt.
    """

    def __init__(
        self, data_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        if processor is None:
            raise JobError("no processor could be loaded from actor_rollout_ref.model.path; verl does not say why")
        self.system = thinking_prompt(config.format_prompt) if config.get("format_prompt") else None
        self.held_out_missing = not data_files
        if self.held_out_missing:
            data_files, max_samples = config.train_files, 1
        given = [data_files] if isinstance(data_files, str | Path) else list(data_files)
        super().__init__([path for one in given for path in _tables(one)], tokenizer, config, processor, max_samples)

    def maybe_filter_out_long_prompts(self, dataframe: Any = None) -> Any:
        """The rows that can be used; says how many were left out, and why."""
        wanted = {f"data.{key}": self.config.get(key) for key in ("prompt_key", "answer_key", "image_key", "type_key")}
        missing = [f"{key}={name}" for key, name in wanted.items() if name and name not in dataframe.column_names]
        if missing:
            raise JobError(f"no such column: {', '.join(missing)}; there are {', '.join(dataframe.column_names)}")
        checked = dataframe.map(
            self._check,
            remove_columns=dataframe.column_names,
            num_proc=self.num_workers if self.num_workers and self.num_workers > 1 else None,
            load_from_cache_file=False,
            desc="checking prompts",
        )
        faults = checked["fault"]
        counts = Counter(fault for fault in faults if fault)
        first = {fault: f"row {k}: {checked[k]['message']}" for k, fault in reversed(list(enumerate(faults))) if fault}
        kept = [k for k, fault in enumerate(faults) if not fault]
        told = "; ".join(f"{kind} {number} (first {first[kind]})" for kind, number in sorted(counts.items()))
        print(f"{len(dataframe)} rows, {len(kept)} kept, {counts.total()} left out{': ' if told else ''}{told}")
        if not self.filter_overlong_prompts and counts["prompt_too_long"]:
            raise JobError(f"{counts['prompt_too_long']} prompts are too long: {first['prompt_too_long']}")
        if not kept:
            raise JobError(f"none of {len(dataframe)} rows can be used: {told}")
        return dataframe.select(kept)

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = self.dataframe[item]
        told = self.reward_row(row)
        kind = NO_VALIDATION if self.held_out_missing else str(row[self.config.type_key])
        return {
            "raw_prompt": self.messages(row),
            "data_source": kind,
            "reward_model": {"style": told.kind, "ground_truth": told.reference},
            "reward_type": told.kind,
            "problem": told.question,
            "extra_info": {"index": item},
            "index": item,
            "tools_kwargs": {},
            "interaction_kwargs": {},
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),  # verl's batches need a tensor
        }

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The chat of a row with its pictures inside, under the system prompt unless it brings its own.

        Raises:
            RecordError: as :func:`src.chat.prompt_messages` and :func:`src.dataset.images.open_image`.
        """
        asked = row[self.prompt_key]
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else [dict(turn) for turn in asked or []]
        if self.system and not (turns and turns[0].get("role") == "system"):
            turns = [{"role": "system", "content": self.system}, *turns]
        messages = prompt_messages(turns, [open_image(image) for image in self._sources(row)])
        limits = {key: self.config.get(key) for key in ("min_pixels", "max_pixels") if self.config.get(key)}
        for message in messages:
            message["content"] = [
                {**part, **limits} if part["type"] == "image" else part for part in message["content"]
            ]
        return messages

    def reward_row(self, row: Mapping[str, Any]) -> RewardRow:
        """What responses to a row are measured by.

        Raises:
            RecordError: ``empty_answer``, ``unknown_reward_type`` or ``no_reference_box``.
        """
        answer = row[self.config.answer_key]
        if answer is None or not str(answer).strip():
            raise RecordError("empty_answer", f"the column {self.config.answer_key} is empty")
        kind = str(row[self.config.type_key])
        named = (self.config.get("reward_by_type") or {}).get(kind) or (kind if kind in REWARDS else None)
        named = named or self.config.get("reward_default")
        if named not in REWARDS:
            raise RecordError("unknown_reward_type", f"type {kind!r} has no reward of {', '.join(REWARDS)}")
        problem = row.get(self.config.problem_key) if self.config.get("problem_key") else None
        question = problem if isinstance(problem, str) else _last_text(row[self.prompt_key])
        told = RewardRow(kind=named, response="", reference=str(answer), question=question.replace(IMAGE, "").strip())
        if named == BoxOverlap.name:
            BoxOverlap().check(told)
        return told

    def prompt_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Length of a prompt in tokens as the rollout makes it, those of its images included; no pixel is resized."""
        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self.apply_chat_template_kwargs
        )
        parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
        placeholders = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(placeholders) + sum(self._image_tokens(part) - 1 for part in parts)

    def _image_tokens(self, part: Mapping[str, Any]) -> int:
        images = self.processor.image_processor
        factor = images.patch_size * images.merge_size
        width, height = part["image"].size
        # As qwen-vl-utils resizes for verl, and then the processor.
        height, width = smart_resize(
            height,
            width,
            factor,
            part.get("min_pixels", IMAGE_MIN_TOKEN_NUM * factor**2),
            part.get("max_pixels", IMAGE_MAX_TOKEN_NUM * factor**2),
        )
        patches = images.get_number_of_image_patches(height, width, dict(self.mm_processor_kwargs))
        return patches // images.merge_size**2

    def _check(self, row: Mapping[str, Any]) -> dict[str, str]:
        try:
            self.reward_row(row)
            length = self.prompt_tokens(self.messages(row))
            if length > self.max_prompt_length:
                message = f"{length} tokens, above data.max_prompt_length={self.max_prompt_length}"
                raise RecordError("prompt_too_long", message)
        except RecordError as error:
            return {"fault": error.kind, "message": str(error)}
        return {"fault": "", "message": ""}

    def _sources(self, row: Mapping[str, Any]) -> list[Any]:
        images = row.get(self.image_key) if self.image_key else None
        if images is None:
            return []
        given = images if isinstance(images, list | tuple) else [images]
        return [image for image in given if image is not None]


def _tables(path: str | Path) -> list[str]:
    """The files of a data set: itself, or the Parquet files of a folder."""
    if not Path(path).expanduser().is_dir():
        return [str(path)]
    found = sorted(map(str, Path(path).expanduser().glob("**/*.parquet")))
    if not found:
        raise JobError(f"the folder {path} holds no .parquet file")
    return found


def _last_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
