"""Best of N on LHRS-Bench, or any questions that are answered in words; numbers by type of question too.

    python python_script/evaluation/lhrs_bench_bon.py --model_path PumpkinCat/Qwen2VL-7B-RS \\
        --reward_model_path PumpkinCat/ScoreRS --eval_image_root data/images \\
        --eval_target_file data/LHRS-Bench.json --output_path output/bon

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
        run(args, "choice")


def flags() -> argparse.ArgumentParser:
    return bon_flags(__doc__, "lhrs_bench")


if __name__ == "__main__":
    main()
