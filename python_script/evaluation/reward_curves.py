"""Draw how reward training went: loss and accuracy of every stage, and what each reached by kind of wrong answer.

    python python_script/evaluation/reward_curves.py output/reward_stage1 output/reward_stage2 output/reward_stage3

Each folder is a ``save_folder`` of train_reward.py. Those that hold ``accuracy/reward_accuracy.json``, as after
script/train_reward_*_stage.sh, are compared by kind, if they were measured on the data of the last one.
Writes HTML, PNG or SVG, by the name given.
"""

import argparse
import json
from pathlib import Path

from src.config import exit_on_job_error
from src.errors import JobError
from src.evaluation.training_page import curves, kinds, write_curves


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="save_folder of a training, in order")
    parser.add_argument("--output", type=Path, default=Path("output/reward_curves.html"), help="default %(default)s")
    options = parser.parse_args(argv)
    with exit_on_job_error():
        histories, measured = {}, {}
        for folder in options.runs:
            if not (folder / "history.json").is_file():
                raise JobError(f"{folder} holds no history.json: not the folder of a finished training")
            histories[folder.name] = json.loads((folder / "history.json").read_text(encoding="utf-8"))
            if (found := folder / "accuracy" / "reward_accuracy.json").is_file():
                measured[folder.name] = json.loads(found.read_text(encoding="utf-8"))
        # Only runs that were measured on the same pairs can stand in one chart.
        last = next(reversed(measured.values()), None)
        same = {name: result for name, result in measured.items() if last and result["data"] == last["data"]}
        write_curves([curves(histories), *([kinds(same)] if same else [])], options.output)
        print(options.output)


if __name__ == "__main__":
    main()
