"""Best of N on grounding: boxes are voted on by their overlap, and an IoU curve is drawn too.

    python python_script/evaluation/vg_bon.py --model_path PumpkinCat/Qwen2VL-7B-RS \\
        --reward_model_path PumpkinCat/ScoreRS --eval_image_root data/images \\
        --eval_target_file data/VG_DOIR_RSVG_test.json --output_path output/bon

Draws --sample_num candidates of every question, scores each, and tells what every way to choose among them is worth:
first, random, majority_voting, oracle, the judge's highest score, and votes weighted by its scores; for 1, 2, 4 ... N
candidates, by resampling. Candidates and scores are kept: a run that was stopped goes on, and another judge (with a
--reward_name of its own) scores the same candidates. All of them are in the .jsonl, a line a question.
"""

import argparse

from src.config import exit_on_job_error
from src.evaluation.bon_run import bon_flags, run


def main(argv: list[str] | None = None) -> None:
    args = flags().parse_args(argv)
    with exit_on_job_error():
        run(args, "grounding")


def flags() -> argparse.ArgumentParser:
    return bon_flags(__doc__, "rs_vg")


if __name__ == "__main__":
    main()
