"""Fine-tune Qwen2-VL on conversations, with TRL's trainer, and tell by greedy generation how often it is right."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from accelerate.utils import gather_object
from datasets import Dataset as Table
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import Trainer
from trl import SFTTrainer

from src.dataset.collate import PairEncoder
from src.rewards.answers import final_answer, same_answer
from src.rewards.boxes import box_hits, parse_boxes
from src.training.run import ShardedTrainer
from src.training.vlm_config import Answering, Evaluation
from src.training.vlm_data import ConversationCollator, Encoded, encode_conversation

PREDICTIONS = "predictions.jsonl"


class HeldOutTrainer(ShardedTrainer):
    """What trainers of Qwen2-VL share: held-out records answered and judged, checkpoints and the last model.

    Attributes:
        held_out: conversations to measure on, by records; None: no evaluation.
        evaluation: how to measure.
        tells_loss: whether the loss of the held-out answers is measured too.
    """

    held_out: ConversationCollator | None
    evaluation: Answering
    tells_loss = True
    _tokenizer: Any  # of TRL's trainers

    def prepare(self, model: Any) -> None:
        """Once TRL's trainer is made: what of it, and of the model's files, is done otherwise here."""
        # TRL finds probabilities where there is a label, but without Triton at all positions: half the time of a step.
        trl.trainer.utils._use_triton = lambda device: True  # noqa: ARG005
        plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        # Or checkpoints would have the weights under their published names, and be read back by those they have here.
        plain.save_pretrained = partial(plain.save_pretrained, save_original_format=False)

    def _send_telemetry(self) -> None:
        """Nothing is sent anywhere, online either."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card that says next to nothing: config.yaml and metrics.json tell what a run was."""

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss over answer tokens, and how often the last answer of a held-out record is given, by kind.

        An answer is right if it equals the reference, or one of them, in plain form
        (:func:`src.rewards.answers.same_answer`); of a reference with boxes, as many are right as are hit with an IoU
        of at least 0.5. ``predictions.jsonl`` has every answer of the latest evaluation.

        Returns:
            ``loss``, ``accuracy``, ``accuracy_<kind>`` (mean over records) and, for kinds with boxes,
            ``precision_<kind>`` (hits over all true boxes), each with the prefix; the same in every process.
        """
        assert self.held_out is not None
        model: Any = self.model
        model.eval()
        sums, found = torch.zeros(2, dtype=torch.float64, device=self.args.device), []
        bar = tqdm(list(self._batches()), "held out", leave=False, disable=not self.is_world_process_zero())
        for rows, mine in bar:
            own = [row for row, is_own in zip(rows, mine, strict=True) if is_own]
            if self.tells_loss:
                sums += torch.stack(self._loss(self.held_out, own or rows[:1])).double() * bool(own)
            said = self._answers(self.held_out, rows)
            found += [
                {"row": row, "prediction": text} for row, text, is_own in zip(rows, said, mine, strict=True) if is_own
            ]
        total, tokens = self.accelerator.reduce(sums, "sum").tolist()
        told = zip((one["row"] for one in found), self._judged(found), strict=True)
        records = [record for _, record in sorted(gather_object(list(told)), key=lambda one: one[0])]
        loss = {"loss": total / max(1.0, tokens)} if self.tells_loss else {}
        metrics = {**loss, **accuracies(records)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        if self.is_world_process_zero():
            lines = [json.dumps(record, ensure_ascii=False) for record in records]
            Path(str(self.args.output_dir), PREDICTIONS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _batches(self) -> Iterator[tuple[list[int], list[bool]]]:
        """This process's rows of the held-out records, and which of them are its own to judge.

        Every process gets as many batches, or sharded weights would wait for each other; those it has too few for
        are filled with records of others.
        """
        assert self.held_out is not None
        count = len(self.held_out.data.table)
        count = count if self.evaluation.limit is None else min(count, self.evaluation.limit)
        world, size = self.args.world_size, self.args.per_device_eval_batch_size
        numbers = range(self.args.process_index, -(-count // world) * world, world)
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            yield [number % count for number in part], [number < count for number in part]

    @torch.no_grad()
    def _loss(self, held_out: ConversationCollator, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Summed loss of the records' answers (the first of several), and their tokens."""
        inputs = Trainer._prepare_inputs(self, held_out([{"row": row, "answer": 0} for row in rows]))
        with self.compute_loss_context_manager():
            outputs = self.accelerator.unwrap_model(self.model)(**inputs, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.sum(), outputs.label_mask.sum()

    @torch.no_grad()
    def _answers(self, held_out: ConversationCollator, rows: list[int]) -> list[str]:
        """What the model says to the records, by greedy search."""
        encoded = [encode_conversation(held_out.encoder, held_out.data.table[row]) for row in rows]
        if not any(one.images for one in encoded):
            encoded.append(held_out.blank())
        prompts = Trainer._prepare_inputs(self, prompt_batch(encoded, held_out.encoder))
        with self.compute_loss_context_manager():
            ids = self.accelerator.unwrap_model(self.model).generate(
                **prompts,
                do_sample=False,
                max_new_tokens=self.evaluation.max_new_tokens,
                eos_token_id=self._tokenizer.convert_tokens_to_ids("<|im_end|>"),
                pad_token_id=self._tokenizer.pad_token_id,
                synced_gpus=self.is_fsdp_enabled or self.is_deepspeed_enabled,
            )
        return [self._text(row) for row in ids[: len(rows), prompts["input_ids"].shape[1] :]]

    def _text(self, ids: Tensor) -> str:
        ends = {"<|im_end|>", self._tokenizer.pad_token}
        tokens = [t for t in self._tokenizer.convert_ids_to_tokens(ids.tolist()) if t not in ends]
        return self._tokenizer.convert_tokens_to_string(tokens).strip()

    def _judged(self, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        assert self.held_out is not None
        records = []
        for one in found:
            row = self.held_out.data.table[one["row"]]
            references = row["answers"] or [row["turns"][-1]["content"]]
            told = {"id": row["id"], "kind": row["kind"], "references": references, "prediction": one["prediction"]}
            records.append({**told, **judge(one["prediction"], references)})
        return records

    def save_final(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the model, adapters merged, and its processor as a Qwen2-VL folder; all processes must call it."""
        state = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.is_world_process_zero():
            return
        model: Any = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            state = merged_weights(model, state)
            model = model.get_base_model()
        if model.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        model.config.dtype = dtype
        plain = type(model).save_pretrained  # under the published names, which other programs know
        plain(model, folder, state_dict={name: weight.to(dtype) for name, weight in state.items()})
        self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]


class VlmTrainer(HeldOutTrainer, SFTTrainer):
    """TRL's trainer on batches of :class:`ConversationCollator`, its loss the mean over the answer tokens of a step.

    Args:
        collator: of the conversations to train on.
        held_out: of those to measure on, by records; None: no evaluation.
        evaluation: how to measure.
        args, kwargs: as for :class:`trl.SFTTrainer`.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        collator: ConversationCollator,
        held_out: ConversationCollator | None,
        evaluation: Evaluation,
        **kwargs: Any,
    ):
        self.held_out, self.evaluation = held_out, evaluation
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=collator.data.index,
            eval_dataset=Table.from_dict({"row": range(len(held_out.data.table))}) if held_out else None,
            processing_class=collator.encoder.processor,
            **kwargs,
        )
        self.prepare(model)
        # Qwen2-VL says that its own loss cannot take the number of tokens of all micro-batches; TRL's loss here can.
        self.model_accepts_loss_kwargs = True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what TRL does, but for its count of tokens, which knows no packed rows."""
        model: Any = self.model
        self._metrics["train" if model.training else "eval"].pop("num_tokens", None)
        super().log(logs, *args, **kwargs)


def merged_weights(model: PeftModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model, each adapter added to its layer.

    PEFT would merge the model itself, whose weights may be divided among processes.

    Args:
        state: all weights of ``model``, as gathered from the processes that share them.
    """
    lora: Any = model.peft_config["default"]
    merged = {}
    for name, weight in state.items():
        if ".lora_" in name or ".original_module." in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        if (layer := name.removesuffix(".base_layer.weight")) != name:
            down, up = (state[f"{layer}.lora_{side}.default.weight"].float() for side in "AB")
            weight = (weight.float() + lora.lora_alpha / lora.r * (up @ down)).to(weight.dtype)  # noqa: PLW2901
        merged[plain.replace(".base_layer.", ".")] = weight
    return merged


def prompt_batch(encoded: Sequence[Encoded], encoder: PairEncoder) -> dict[str, Tensor]:
    """Left-padded prompts of the last answers, as ``generate`` takes them."""
    tokenizer = encoder.processor.tokenizer
    prompts = [torch.tensor(one.ids[: one.prompt or None]) for one in encoded]
    ids = torch.nn.utils.rnn.pad_sequence(
        prompts, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left"
    )
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    image_token = tokenizer.convert_tokens_to_ids(encoder.processor.image_token)
    images = [image for one in encoded for image in one.images]
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1])[None] >= ids.shape[1] - lengths[:, None]).long(),
        "mm_token_type_ids": (ids == image_token).int(),
        "pixel_values": torch.cat([image.pixel_values for image in images]),
        "image_grid_thw": torch.tensor([image.grid for image in images]),
    }


def judge(prediction: str, references: Sequence[str]) -> dict[str, Any]:
    """``correct``, 0 to 1; of a reference with boxes also ``hits`` and ``boxes``, how many there truly are."""
    references = [final_answer(reference) for reference in references]  # which may have their reasoning before them
    true = parse_boxes(references[0])
    if not true:
        return {"correct": float(same_answer(prediction, references))}
    hits = box_hits(true, parse_boxes(prediction))
    return {"correct": hits / len(true), "hits": hits, "boxes": len(true)}


def accuracies(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of ``correct``, and of ``format`` and ``reward`` where they are told; by ``kind`` of ``correct`` and
    ``reward``, and of kinds with boxes the hits over all true boxes."""
    by_kind: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_kind[record["kind"]].append(record)
    metrics = {"accuracy": sum(record["correct"] for record in records) / max(1, len(records))}
    metrics |= _mean(records, "format") | _mean(records, "reward")
    for kind, members in sorted(by_kind.items()):
        if kind:
            metrics[f"accuracy_{kind}"] = sum(record["correct"] for record in members) / len(members)
            metrics |= {f"{name}_{kind}": mean for name, mean in _mean(members, "reward").items()}
        if boxes := sum(record.get("boxes", 0) for record in members):
            name = f"precision_{kind}" if kind else "precision"
            metrics[name] = sum(record.get("hits", 0) for record in members) / boxes
    return metrics


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    values = [record[name] for record in records if record.get(name) is not None]
    return {name: sum(values) / len(values)} if values else {}
