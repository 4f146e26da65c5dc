"""Fine-tune Qwen2-VL on conversations about images, on one process or many: its merger alone, adapters, or all of it.

    python python_script/train_vlm.py CONFIG [key=value ...]
    python python_script/train_vlm.py config/sft_finetuning.yaml data.path=sft.json data.subset=output/mine
    accelerate launch --config_file config/accelerate/zero2.yaml python_script/train_vlm.py CONFIG [key=value ...]

``save_folder`` receives ``config.yaml``, TensorBoard logs, ``checkpoint-N`` (go on with ``load_path=last``), ``final``
(a folder for ``Qwen2VLForConditionalGeneration`` and ``AutoProcessor``, adapters merged), ``predictions.jsonl`` (the
held-out answers), ``metrics.json`` and ``history.json``.
"""

import logging
from pathlib import Path

from src.config import run_program
from src.training.vlm_config import VlmConfig
from src.training.vlm_run import train_vlm

ROOT = Path(__file__).resolve().parents[1]


def main(config: VlmConfig) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    train_vlm(config)


if __name__ == "__main__":
    run_program(main, VlmConfig, ROOT / "config" / "sft_finetuning.yaml")
