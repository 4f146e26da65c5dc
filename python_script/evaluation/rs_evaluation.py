"""Evaluate a vision-language model on remote-sensing tasks: classification, questions, grounding, captions.

    python python_script/evaluation/rs_evaluation.py --model_path assets/nano/vlm --data_root output/evaluation_data
    accelerate launch --num_processes 8 python_script/evaluation/rs_evaluation.py --model_type geochat \\
        --model_path output/geochat --data_root data --task rs_vg lhrs_bench

Writes for each task a JSON file with the numbers and a JSON Lines file with every answer, and tables over all models
and tasks in the folder. A run that was stopped goes on where it was, with any number of processes.
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from src.config import exit_on_job_error
from src.errors import JobError
from src.evaluation.adapters import MODEL_TYPES, get_adapter
from src.evaluation.adapters.families import FAMILIES
from src.evaluation.backends import Sampling
from src.evaluation.lvlm import Job, Team, ask, check_places, deciding, evaluate, read_options
from src.evaluation.result_table import markdown, tables_of, write_tables
from src.evaluation.results import read_results
from src.evaluation.tasks import known_tasks, pick_tasks

ENGINES = ("vllm", "lmdeploy")
DTYPES = ("auto", "float16", "bfloat16", "float32")


def truth(text: str) -> bool:
    """true or false, and nothing else."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"true or false is needed, not {text}")
    return text.lower() in ("true", "1", "yes")


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", nargs="+", default=["all"], metavar="NAME",
        help=f"all: those with a file below --data_root; or some of {', '.join(known_tasks())}")  # fmt: skip
    add("--data_root", type=Path, default=Path("data"), help="folder of the annotations (%(default)s)")
    add("--image_root", type=Path, help="folder that images must lie in (default: --data_root)")
    add("--output_dir", type=Path, default=Path("output/lvlm"), help="folder of results (%(default)s)")
    add("--model_type", default="transformers", help=f"one of {', '.join(MODEL_TYPES)} (%(default)s)")
    add("--model_path", default="assets/nano/vlm", help="folder, hub id, or the server's name for it (%(default)s)")
    add("--family", help=f"how it is asked, if not as found: {', '.join(FAMILIES)}")
    add("--reasoning_config", help="JSON file with the prompt that asks for think and answer tags")
    add("--do_sample", type=truth, default=False, metavar="true|false", help="draw answers (false: likeliest tokens)")
    add("--temperature", type=float, default=1.0, help="of --do_sample (%(default)s)")
    add("--top_p", type=float, default=1.0, help="of --do_sample (%(default)s)")
    add("--seed", type=int, default=0, help="of --do_sample (%(default)s)")
    add("--max_new_tokens", type=int, default=1024, help="longest answer (%(default)s)")
    add("--beam_size", type=int, default=1, choices=[1], help="1: no beam search is offered")
    add("--use_cache", type=truth, default=True, metavar="true|false", help="true: the only way that is offered")
    add("--dtype", default="auto", choices=DTYPES, help="(%(default)s)")
    add("--batch_size", type=int, help="answers made side by side (default: the back end's own)")
    add("--option", nargs="+", default=[], metavar="KEY=VALUE", help="of the back end, such as url or max_pixels")
    add("--limit", type=int, help="the first so many questions of each task")
    add("--force_inference", type=truth, nargs="?", const=True, default=False, metavar="true|false",
        help="forget the answers of earlier runs")  # fmt: skip
    add("--blind", action="store_true", help="ask without the images: what questions alone give away")
    add("--metric_compat", choices=("intended", "published"), default="intended",
        help="published: print the numbers of the published rules too")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> None:
    args = flags().parse_args(argv)
    with exit_on_job_error():
        names = [name for given in args.task for name in given.split(",")]
        tasks = pick_tasks(names, args.data_root)
        job, options = settings(args)
        check_places(job, tasks)
        team = gather(args)
        if team.world > 1 and torch.cuda.is_available() and MODEL_TYPES[args.model_type][0] == "transformers":
            options.setdefault("device", f"cuda:{torch.cuda.current_device()}")
        first = team.rank == 0
        adapter = get_adapter(
            args.model_type, args.model_path, args.family, args.reasoning_config,
            **options, image_root=job.image_root, progress=first,
        )  # fmt: skip
        for number, task in enumerate(tasks, 1):
            if first:
                print(f"[{number}/{len(tasks)}] {task.name}", flush=True)
            answered = ask(job, adapter, task, team, args.force_inference)
            if first:
                result = evaluate(job, adapter, answered)
                print(answered.speed, result, result.write(job.output, dated=False), sep="\n", flush=True)
        if first:
            tables = tables_of(read_results([job.output]))
            paths = write_tables(tables, job.output)
            print("", markdown(tables), *paths, sep="\n")
        team.wait()


def settings(args: argparse.Namespace) -> tuple[Job, dict[str, Any]]:
    """What is evaluated; and all options of the back end, those on which no answer depends (and a key) included."""
    if not args.use_cache:
        raise JobError("--use_cache false is not offered: texts are the same with it")
    if args.limit is not None and args.limit < 0:
        raise JobError(f"--limit must not be negative: {args.limit}")
    if args.model_type not in MODEL_TYPES:
        raise JobError(f"unknown model type {args.model_type!r}; known: {', '.join(MODEL_TYPES)}")
    backend = MODEL_TYPES[args.model_type][0]
    options = read_options(args.option)
    if backend != "openai":
        options["dtype"] = args.dtype
    if args.batch_size is not None:
        options[{"transformers": "batch_size", "openai": "concurrency"}.get(backend, "window")] = args.batch_size
    drawn = {"temperature": args.temperature, "top_p": args.top_p, "seed": args.seed} if args.do_sample else {}
    job = Job(
        args.model_path or "server", args.model_type, args.data_root.absolute(),
        (args.image_root or args.data_root).absolute(), args.output_dir,
        Sampling(max_new_tokens=args.max_new_tokens, **drawn), deciding(options), args.limit, args.blind,
        args.metric_compat == "published",
    )  # fmt: skip
    return job, options


def gather(args: argparse.Namespace) -> Team:
    """The processes that were started together, a GPU each where there are GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    if args.model_type in ENGINES:
        raise JobError(f"{args.model_type} uses several GPUs by itself (--option tensor_parallel_size=8, tp=8)")
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=24))
    return Team(state.process_index, state.num_processes, state.wait_for_everyone)


if __name__ == "__main__":
    main()
