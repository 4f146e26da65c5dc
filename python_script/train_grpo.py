"""Reinforce Qwen2-VL with rewards of its answers in the thinking format (GRPO), by rules and by a running score server.

    python python_script/train_grpo.py CONFIG [key=value ...]
    python python_script/train_grpo.py config/grpo.yaml data.path=rl.parquet reward.server_url=http://10.0.0.2:8000
    accelerate launch --config_file config/accelerate/zero2.yaml python_script/train_grpo.py CONFIG [key=value ...]

``save_folder`` receives ``config.yaml``, TensorBoard logs, ``checkpoint-N`` (go on with ``load_path=last``), ``final``
(a folder for ``Qwen2VLForConditionalGeneration`` and ``AutoProcessor``), ``predictions.jsonl`` (the held-out answers),
``metrics.json``, ``history.json`` and ``rewards.png``. A reward that could not be computed is left out and counted;
where none could, or the server does not answer after ``reward.tries``, the run ends and says why.
"""

import json
import logging
import os
from contextlib import ExitStack
from pathlib import Path

from src.config import run_program
from src.evaluation.grpo_page import reinforcement
from src.evaluation.training_page import write_curves
from src.rewards.rewards import PairScorer
from src.serving.client import Retry, RewardClient
from src.serving.pair_scorer import server_scorer
from src.training.grpo import train_grpo
from src.training.grpo_config import GrpoConfig, Rewards

ROOT = Path(__file__).resolve().parents[1]


def connect(reward: Rewards, stack: ExitStack) -> PairScorer | None:
    """The scorer of ``reward.server_url``, closed with the stack; None without one.

    Raises:
        JobError: the URL is none of HTTP.
    """
    if not reward.server_url:
        return None
    client = RewardClient(reward.server_url, reward.api_key, deadline=reward.deadline, retry=Retry(reward.tries))
    return server_scorer(stack.enter_context(client))


def main(config: GrpoConfig) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with ExitStack() as stack:
        train_grpo(config, connect(config.reward, stack))
    if int(os.environ.get("RANK", "0")) == 0:
        folder = Path(config.save_folder)
        history, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("history", "metrics"))
        charts = reinforcement({config.run_name: history}, {config.run_name: metrics})
        write_curves(charts, folder / "rewards.png")


if __name__ == "__main__":
    run_program(main, GrpoConfig, ROOT / "config" / "grpo.yaml")
