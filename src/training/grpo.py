"""Reinforce Qwen2-VL with rewards of its answers in the thinking format (GRPO), with TRL's trainer."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer

from src.chat import RESERVED, thinking_prompt
from src.dataset.collate import PairEncoder
from src.errors import JobError, RecordError
from src.rewards.rewards import PairScorer, Reward, RewardResult, RewardRow, read_response
from src.training.grpo_config import GrpoConfig
from src.training.grpo_data import Prompts, SeparateBatches, ask_in_format, reward_row
from src.training.run import resume_point, set_up_wandb, training_arguments, write_outcome
from src.training.vlm import HeldOutTrainer
from src.training.vlm_config import Answering, make_trainable, trained_parts
from src.training.vlm_data import ConversationCollator, load_conversations
from src.training.vlm_run import load_model, load_processor

_log = logging.getLogger(__name__)


class GrpoTrainer(HeldOutTrainer, GRPOTrainer):
    """TRL's trainer on :class:`Prompts`, rewarded by :class:`src.rewards.rewards.Reward`.

    A reward that could not be computed takes its response out of the step: it is neither 0 nor in any mean.

    Args:
        prompts: to train on.
        reward: of all kinds that the prompts have.
        held_out: conversations to measure on; None: no evaluation.
        evaluation: how to measure.
        args, kwargs: as for :class:`trl.GRPOTrainer`.
    """

    tells_loss = False  # the references hold no reasoning

    def __init__(
        self,
        model: Any,
        args: Any,
        prompts: Prompts,
        reward: Reward,
        held_out: ConversationCollator | None,
        evaluation: Answering,
        **kwargs: Any,
    ):
        self.held_out, self.evaluation = held_out, evaluation
        self.prompts, self.reward = prompts, reward
        self.masked: Counter[str] = Counter()  # rewards that could not be computed, by kind of error
        super().__init__(model, self._rewards, args, train_dataset=prompts.table(), **kwargs)
        # Without its new adapters the model is what it was: the reference needs no copy of them, and where there is
        # one, transformers brings back that alone from a checkpoint.
        if "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")
        self.prepare(model)

    def _get_train_sampler(self, dataset: Any = None) -> SeparateBatches:  # noqa: ARG002
        args: Any = self.args
        each: int = self.num_generations  # type: ignore[assignment]  # as configured
        repeats = self.num_iterations * args.steps_per_generation
        return SeparateBatches(self.prompts.groups(), args.generation_batch_size // each, each, repeats, args.seed)

    def _rewards(self, completion_ids: Sequence[Sequence[int]], log_metric: Any, **columns: Any) -> list[float | None]:
        """The reward of each response, None where it could not be computed; logs their means and parts.

        Raises:
            JobError: the scorer does not answer any more, or no reward of the step could be computed.
        """
        names = ("reward", "reference", "question", "sources")
        told = zip(completion_ids, *(columns[name] for name in names), strict=True)
        rows = [
            RewardRow(kind=kind, response=self._text(torch.tensor(ids)), reference=reference, question=question,
                      images=tuple(sources))
            for ids, kind, reference, question, sources in told
        ]  # fmt: skip
        results = self.reward(rows)
        failed = [result for result in results if isinstance(result, RecordError)]
        step = self.state.global_step + 1
        if self.reward.lost:
            raise JobError(f"step {step}: rewards cannot be had: {self.reward.lost}")
        if len(failed) == len(rows):
            raise JobError(f"step {step}: none of {len(rows)} rewards could be computed; the first: {failed[0]}")
        if failed:
            _log.warning(
                "step %d: %d of %d rewards are left out; the first: %s", step, len(failed), len(rows), failed[0]
            )
        self.masked.update(error.kind for error in failed)
        log_metric("masked", float(len(failed)))
        for name, value in _means(rows, results).items():
            log_metric(name, value)
        return [result.overall if isinstance(result, RewardResult) else None for result in results]

    def _judged(self, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Each with ``format``, 1 or 0, and ``reward``, None where it could not be computed."""
        assert self.held_out is not None
        data, rewards = self.held_out.data, self.prompts.rewards
        said = [(data.table[one["row"]], one["prediction"]) for one in found]
        rows = [reward_row(row, row["turns"], rewards, data.root, text) for row, text in said]
        results = self.reward(rows)
        if failed := [result for result in results if isinstance(result, RecordError)]:
            _log.warning("%d of %d held-out rewards are left out; the first: %s", len(failed), len(rows), failed[0])
        return [
            {**one, "format": float(read_response(one["prediction"]) is not None),
             "reward": result.overall if isinstance(result, RewardResult) else None}
            for one, result in zip(super()._judged(found), results, strict=True)
        ]  # fmt: skip


def _means(rows: Sequence[RewardRow], results: Sequence[RewardResult | RecordError]) -> dict[str, float]:
    """Means over the rewards that could be computed: of each part, and of reward and accuracy by kind of reward."""
    values: dict[str, list[float]] = defaultdict(list)
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, RewardResult):
            for name in ("format", "accuracy", "unparsed"):
                values[name].append(result.parts()[name])
            values[f"reward_{row.kind}"].append(result.overall)
            values[f"accuracy_{row.kind}"].append(result.accuracy)
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def train_grpo(config: GrpoConfig, scorer: PairScorer | None = None) -> dict[str, float]:
    """Reinforce the model of a configuration and write ``save_folder``; returns what ``metrics.json`` holds.

    Args:
        scorer: of ``open_ended`` rewards.

    Raises:
        JobError: as :func:`load_conversations`, :func:`resume_point` and :class:`GrpoTrainer`; groups that do not fill
            a step; or ``open_ended`` rewards without a scorer.
    """
    checkpoint, out = resume_point(config), Path(config.save_folder)
    set_up_wandb(config)
    try:
        arguments = training_arguments(
            config,
            None,
            GRPOConfig,
            dataloader_num_workers=0,  # prompts are made in time: generation takes far longer
            num_generations=config.rollout.num_generations,
            max_completion_length=config.rollout.max_new_tokens,
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            beta=config.policy.kl_coef,
            epsilon=config.policy.clip_low,
            epsilon_high=config.policy.clip_high,
        )
        reward = Reward(config.reward.format_weight, scorer)
    except ValueError as error:  # of TRL: a step must hold whole groups
        raise JobError(f"rollout, reward or batch sizes: {error}") from error
    set_seed(config.seed)
    processor = load_processor(config.model.model_name, config.data.max_pixels)
    processor.tokenizer.padding_side = "left"  # TRL pads image positions as the tokeniser does, but prompts on the left
    # TRL itself keeps only the image token from being generated.
    reserved = [processor.tokenizer.convert_tokens_to_ids(token) for token in RESERVED]
    arguments.generation_kwargs = {"suppress_tokens": reserved}
    encoder = PairEncoder(processor, max_tokens=config.data.cutoff_len)
    system = thinking_prompt()
    with arguments.main_process_first(local=False):
        data, _ = load_conversations(config.data, encoder)
        prompts = Prompts(data, system, config.reward)
        held_out = _held_out(config, encoder, system)
    kinds = prompts.kinds()
    if scorer is None and "open_ended" in kinds.values():
        asked = ", ".join(repr(kind) for kind, name in kinds.items() if name == "open_ended")
        raise JobError(f"records of kind {asked} have open_ended rewards: set reward.server_url, or another reward")
    model = make_trainable(load_model(config.model, config.precision), config.model)
    for weight in model.parameters():
        if weight.requires_grad and not arguments.deepspeed_plugin:  # in half precision small updates would be lost
            weight.data = weight.data.float()
    if arguments.process_index == 0:
        print(f"train: {data.summary}; rewards {', '.join(f'{kind}: {name}' for kind, name in kinds.items())}")
        print(f"{trained_parts(model)}; {arguments.world_size} processes on {arguments.device.type}")
        out.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), out / "config.yaml")

    trainer = GrpoTrainer(model, arguments, prompts, reward, held_out, config.evaluation, processing_class=processor)
    metrics: dict[str, float] = {}
    if held_out and config.evaluation.before_training and checkpoint is None:
        metrics |= trainer.evaluate(metric_key_prefix="before")
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics["train_steps_per_second"] = result.metrics["train_steps_per_second"]
    metrics |= {f"masked_{kind}": count for kind, count in trainer.masked.items()}
    metrics |= _first_and_last(trainer.state.log_history)
    if held_out:
        metrics |= trainer.evaluate()
    trainer.save_final(out / "final", getattr(torch, config.model.save_dtype))
    write_outcome(trainer, out, metrics)
    return metrics


def _held_out(config: GrpoConfig, encoder: PairEncoder, system: str) -> ConversationCollator | None:
    if not config.data.eval_path:
        return None
    data, own = load_conversations(config.data, encoder, held_out=True)
    return ConversationCollator(ask_in_format(data, system), own)


def _first_and_last(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean rewards, of all and by kind, over the first and the last tenth of the log lines."""
    lines = [entry for entry in history if "reward" in entry]
    share = -(-len(lines) // 10)
    found = {}
    for when, part in (("first", lines[:share]), ("last", lines[-share:])):
        for name in sorted(
            {name for entry in part for name in entry if name.split("_")[0] == "reward"} - {"reward_std"}
        ):
            values = [entry[name] for entry in part if entry.get(name) is not None]
            found[f"{when}_{name}"] = sum(values) / len(values) if values else float("nan")
    return found
