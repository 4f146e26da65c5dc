"""Draw how training went: loss and accuracy of every stage of a score model, or the rewards of reinforcement learning.

    python python_script/evaluation/reward_curves.py output/reward_stage1 output/reward_stage2 output/reward_stage3

Each folder is a ``save_folder`` of train_reward.py. Those that hold ``accuracy/reward_accuracy.json``, as after
script/train_reward_*_stage.sh, are compared by kind, if they were measured on the data of the last one. Folders of
train_grpo.py, such as those of several seeds, give one chart of their rewards, and held-out accuracy before and after.
Writes HTML, PNG or SVG, by the name given.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from src.config import exit_on_job_error
from src.errors import JobError
from src.evaluation.grpo_page import reinforcement, rewarded
from src.evaluation.training_page import curves, kinds, write_curves


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="save_folder of a training, in order")
    parser.add_argument("--output", type=Path, default=Path("output/reward_curves.html"), help="default %(default)s")
    options = parser.parse_args(argv)
    with exit_on_job_error():
        for folder in options.runs:
            if not (folder / "history.json").is_file():
                raise JobError(f"{folder} holds no history.json: not the folder of a finished training")
        histories = {folder.name: read(folder / "history.json") for folder in options.runs}
        if len({rewarded(history) for history in histories.values()}) > 1:
            raise JobError("some folders are of train_grpo.py and some of train_reward.py: draw them apart")
        if rewarded(next(iter(histories.values()))):
            metrics = {folder.name: read(folder / "metrics.json") for folder in options.runs}
            charts = reinforcement(histories, metrics)
        else:
            found = {folder.name: folder / "accuracy" / "reward_accuracy.json" for folder in options.runs}
            measured = {name: read(path) for name, path in found.items() if path.is_file()}
            # Only runs that were measured on the same pairs can stand in one chart.
            last = next(reversed(measured.values()), None)
            same = {name: result for name, result in measured.items() if last and result["data"] == last["data"]}
            charts = [curves(histories), *([kinds(same)] if same else [])]
        write_curves(charts, options.output)
        print(options.output)


if __name__ == "__main__":
    main()
