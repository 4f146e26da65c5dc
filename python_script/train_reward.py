"""Train a score model on preference data, on one process or many.

    python python_script/train_reward.py CONFIG [key=value ...]
    accelerate launch --config_file config/accelerate/ddp.yaml python_script/train_reward.py CONFIG [key=value ...]

``save_folder`` receives ``config.yaml``, TensorBoard logs, ``checkpoint-N`` (go on with ``load_path=last``), ``final``
(the best model, a folder for ``Scorer.from_pretrained`` and ``AutoProcessor``), ``metrics.json`` and ``history.json``.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import AutoProcessor, set_seed

from src.config import run_program
from src.dataset.collate import PairEncoder
from src.dataset.preference import Preference, find_sets
from src.dataset.preference_cache import counts_table, load_preferences, split_by_image
from src.errors import JobError, RecordError
from src.model.checkpoint import locate
from src.model.nano import prefer_fast_attention
from src.model.qwen_reward import Qwen2Reward
from src.training.reward import PreferenceCollator, RewardTrainer, encode_group, ranking_metrics
from src.training.reward_config import Data, RewardConfig, make_trainable
from src.training.run import resume_point, set_up_wandb, training_arguments, write_outcome

ROOT = Path(__file__).resolve().parents[1]


def main(config: RewardConfig) -> None:
    checkpoint, out = resume_point(config), Path(config.save_folder)
    set_up_wandb(config)
    evaluates = bool(config.data.eval_target_root or config.data.eval_share)
    arguments = training_arguments(
        config, "eval_accuracy" if evaluates else None, dataloader_num_workers=config.data.num_workers
    )
    set_seed(config.seed)
    size = {"shortest_edge": 56 * 56, "longest_edge": config.data.max_pixel_base * 28 * 28}
    try:
        processor = AutoProcessor.from_pretrained(locate(config.model.base_model_path))
    except (OSError, ValueError) as error:
        raise JobError(f"model.base_model_path: no processor at {config.model.base_model_path!r}: {error}") from error
    if processor.image_processor.size["longest_edge"] > size["longest_edge"]:
        processor.image_processor.size = size
    encoder = PairEncoder(processor, max_tokens=config.data.max_tokens)
    with arguments.main_process_first(local=False):
        train, held_out, report, pairs = _data(config.data, encoder, config.model.ranked_candidate_num)
    if arguments.process_index == 0:
        print(f"{report}\n{arguments.world_size} processes on {arguments.device.type}")
        out.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), out / "config.yaml")

    model = Qwen2Reward.from_pretrained(
        config.model.reward_model_ckpt_path or config.model.base_model_path,
        dtype=getattr(torch, config.model.dtype),
        position_scheme=config.model.position_scheme,
        attn_implementation=config.model.attn_implementation,
        ranked_candidate_num=config.model.ranked_candidate_num,
    )
    if config.precision == "bf16" and config.model.attn_implementation == "sdpa":
        prefer_fast_attention(model)
    collator = PreferenceCollator(encoder, config.data.source_weights, sorted({*train.unique("source")}))
    trainer = RewardTrainer(
        make_trainable(model, config.model),
        arguments,
        collator,
        train,
        held_out,
        compute_metrics=partial(ranking_metrics, sources=collator.sources),
        processing_class=processor,
        loss="plackett_luce" if config.model.ranked_candidate_num > 2 else config.loss.kind,  # type: ignore[arg-type]
        margin=config.loss.margin,
        centring_weight=config.loss.centring_weight,
        pooled_weight=config.loss.pooled_weight,
        text_weight=config.loss.text_weight,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {"train_pairs_per_second": result.metrics["train_samples_per_second"] * pairs}
    if held_out is not None:
        metrics |= trainer.evaluate()
    trainer.save_final(out / "final", getattr(torch, config.model.save_dtype))
    write_outcome(trainer, out, metrics)


def _data(data: Data, encoder: PairEncoder, k: int) -> tuple[Any, Any, str, float]:
    """Training table, held-out table or None, a report of what each source held, and the mean pairs of a group."""

    def check(item: Preference) -> None:
        if k > 2 and len(item.rejected) != k - 1:
            raise RecordError("bad_record", f"{1 + len(item.rejected)} ranked answers; ranked_candidate_num is {k}")
        encode_group(encoder, vars(item))

    key = f"{k} {encoder.max_tokens} {encoder.processor.image_processor.to_json_string()}"
    load = partial(load_preferences, cache=Path(data.cache_dir), check=check, check_key=key)
    train, counts = load(find_sets(data.target_root, data.image_root), workers=max(1, data.num_workers))
    report, pairs = counts_table(counts), sum(held.pairs for held in counts.values()) / len(train)
    if data.eval_target_root:
        held_out, counts = load(find_sets(data.eval_target_root, data.eval_image_root or data.image_root))
        return train, held_out, f"{report}\nheld out:\n{counts_table(counts)}", pairs
    if data.eval_share:
        train, held_out = split_by_image(train, data.eval_share)
        if not (len(train) and len(held_out)):
            raise JobError(f"data.eval_share={data.eval_share} leaves nothing to train or to evaluate on; 0 skips that")
        report += f"\nheld out by image: {len(held_out)} groups of {len(train) + len(held_out)}"
        return train, held_out, report, pairs
    return train, None, report, pairs


if __name__ == "__main__":
    run_program(main, RewardConfig, ROOT / "config" / "reward_training_stage1.yaml")
