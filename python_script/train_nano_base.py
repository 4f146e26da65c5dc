"""Train the embedded base model from nothing, which is to the reward stages what Qwen2-VL-7B is to the real ones.

    python python_script/train_nano_base.py [CONFIG] data.train=train.parquet data.val=val.parquet [key=value ...]

Three parts: grounding (what lies where in made scenes), contrastive (which text belongs to which image), and matching
(predicting captions token by token, and telling right from wrong ones: Li et al. 2022, "BLIP"). Needs a captioned data
set with classes (the shipped model saw RSICD/AID train). Writes ``output_dir/{grounding,contrastive}`` (the model after
these parts), ``output_dir/base`` (a Qwen2-VL checkpoint), ``output_dir/scorer`` (the same with the reward head that
matching taught) and ``metrics.json``. A part of 0 steps is left out; ``start=FOLDER`` goes on from the model in it, and
``resume=true`` where a run that was stopped left off; ``metrics.json`` is written last.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from transformers import AutoProcessor, Trainer, set_seed

from src.config import run_program
from src.dataset.collate import PairEncoder
from src.model.nano import backbone, nano_config, nano_processor, prefer_fast_attention
from src.model.qwen_reward import Qwen2Reward
from src.training.contrastive import ContrastiveCollator, ContrastiveModel, TowerTrainer
from src.training.grounding import GroundingCollator, GroundingHeads, GroundingModel
from src.training.nano_data import NanoData, RealImages, SceneImages, load_real, load_scenes
from src.training.nano_parts import NanoConfig, Stage, part_arguments
from src.training.reward import PreferenceCollator, RewardTrainer, ranking_metrics
from src.training.run import last_checkpoint

ROOT = Path(__file__).resolve().parents[1]
HEADS = "grounding_heads.safetensors"


def main(config: NanoConfig) -> None:
    out = Path(config.output_dir)
    set_seed(config.seed)
    side = config.data.image_side
    real, scenes = load_real(config.data.train), load_scenes(1, config.data.scenes, side, out / "cache")
    held = load_real(config.data.val), load_scenes(2, 500, side, out / "cache")
    done = [part for part in ("grounding", "contrastive") if config.resume and (out / part / HEADS).is_file()]
    start = out / done[-1] if done else Path(config.start)
    if done or config.start:
        model = Qwen2Reward.from_pretrained(str(start), dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(start)
    else:
        texts = NanoData("contrastive", 1, config.seed, real, scenes).all_texts()
        processor = nano_processor(texts, config.data.vocab_size, side)
        model = Qwen2Reward(nano_config(processor))
    prefer_fast_attention(model)
    encoder = PairEncoder(processor)
    heads = GroundingHeads(model.config.get_text_config().hidden_size)
    if (start / HEADS).is_file():
        load_model(heads, start / HEADS)

    def train(trainer: Trainer) -> None:
        folder = Path(str(trainer.args.output_dir))
        trainer.train(resume_from_checkpoint=last_checkpoint(folder) if config.resume else None)

    if config.grounding.steps and not done:
        data = _draws("grounding", config, config.grounding, real, scenes)
        arguments = part_arguments(config, config.grounding, out / "grounding")
        train(TowerTrainer(GroundingModel(model, heads), arguments, GroundingCollator(encoder), data))
        _save(model, processor, heads, out / "grounding")
    if config.contrastive.steps and "contrastive" not in done:
        towers = ContrastiveModel(model, heads=heads, grounding_weight=config.contrastive.grounding_weight)
        data = _draws("contrastive", config, config.contrastive, real, scenes)
        arguments = part_arguments(config, config.contrastive, out / "contrastive")
        train(TowerTrainer(towers, arguments, ContrastiveCollator(encoder), data))
        _save(model, processor, heads, out / "contrastive")
    if config.matching.steps:
        data = _draws("preference", config, config.matching, real, scenes, rejected=config.matching.rejected)
        val = {
            "real": NanoData("preference", 1000, 7, *held, 1, same_class=0, clean_only=True, augment=False, bare=0),
            "scenes": NanoData("preference", 500, 7, *held, real_share=0, rejected=8, twins=0, bare=0),
        }
        trainer = RewardTrainer(
            model,
            part_arguments(config, config.matching, out / "matching"),
            PreferenceCollator(encoder),
            data,
            val,
            compute_metrics=ranking_metrics,
            processing_class=processor,
            loss="choice",
            pooled_weight=config.matching.pooled_weight,
            text_weight=config.matching.text_weight,
        )
        train(trainer)
        metrics = {name: trainer.evaluate(held_out, metric_key_prefix=name) for name, held_out in val.items()}
        model.save_as(out / "scorer", torch.float16)  # halves the file at no measurable cost
        backbone(model).half().save_pretrained(out / "base")
        for folder in ("scorer", "base"):
            processor.save_pretrained(out / folder)
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2))
        print(json.dumps(metrics, indent=2))
    print(f"model: {out / ('base' if config.matching.steps else 'contrastive')}")


def _draws(task, config: NanoConfig, stage: Stage, real: RealImages, scenes: SceneImages, **options) -> NanoData:
    size = stage.steps * stage.batch_size
    return NanoData(task, size, config.seed, real, scenes, stage.real_share, **options)


def _save(model: Qwen2Reward, processor, heads: GroundingHeads, folder: Path) -> None:
    """Write what a later part starts from, the heads last."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    partial = folder / "heads.partial"
    save_model(heads, str(partial))
    partial.replace(folder / HEADS)


if __name__ == "__main__":
    run_program(main, NanoConfig, ROOT / "config" / "nano" / "train_base.yaml")
