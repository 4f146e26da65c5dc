"""What the best-of-N programs share: their flags, and a run from drawing to the page."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from src.curation.job import weights_of
from src.curation.scorer import NANO, Scorer
from src.errors import JobError
from src.evaluation.adapters import MODEL_TYPES, get_adapter
from src.evaluation.adapters.families import FAMILIES
from src.evaluation.backends import Sampling
from src.evaluation.best_of_n import evaluate, questions_of
from src.evaluation.bon_page import chart
from src.evaluation.charts import save_page
from src.evaluation.features import FeatureStore
from src.evaluation.judges import PARTS, Judge, ScoreFile, clip_model, score_model
from src.evaluation.lvlm import Job, Team, ask, deciding, read_options
from src.evaluation.tasks import Task, known_tasks
from src.model.clip import NANO_CLIP, load_clip

JUDGES = ("Qwen2Reward", "clip", "majority_voting")
# Names of the published prompts
_PUBLISHED = {"qwen2-vl": "qwen2_vl", "qwen2-vl-chat": "qwen2_vl", "qwen2-vl-r1": "qwen2vl_rs_r1",
              "llava-next": "llava", "llava_v1.6": "llava"}  # fmt: skip


def bon_flags(description: str | None, task: str) -> argparse.ArgumentParser:
    """The parser of both programs, which differ in their task alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_type", default="transformers", help=f"one of {', '.join(MODEL_TYPES)} (%(default)s)")
    add("--model_path", default="assets/nano/vlm", help="folder, hub id, or the server's name for it (%(default)s)")
    add("--model_name", help=f"how it is asked, if not as found: {', '.join([*FAMILIES, *_PUBLISHED])}")
    add("--eval_image_root", type=Path, required=True, help="folder of the images")
    add("--eval_target_file", type=Path, required=True, help="questions, JSON list or JSON Lines")
    add("--task", default=task, help="whose prompt and reading of answers (%(default)s)")
    add("--output_path", type=Path, required=True, help="folder of candidates, scores and results")
    add("--sample_num", type=int, default=10, help="candidates of a question (%(default)s)")
    add("--temperature", type=float, default=0.85, help="(%(default)s)")
    add("--top_p", type=float, default=0.95, help="(%(default)s)")
    add("--seed", type=int, default=0, help="of the draws (%(default)s)")
    add("--max_new_tokens", type=int, default=1024, help="longest candidate (%(default)s)")
    add("--reasoning_config", help="JSON file with the prompt that asks for think and answer tags")
    add("--reward_model_type", default=JUDGES[0], choices=JUDGES, help="the judge (%(default)s)")
    add("--reward_model_path", help=f"of the judge: folder or hub id ({NANO}; {NANO_CLIP} for clip)")
    add("--reward_name", help="name of the judge in the results (default: its type); several may judge in turn")
    add("--score_part", default=PARTS[0], choices=PARTS, help="what the judge sees of a candidate (%(default)s)")
    add("--step", default="all", choices=("all", "sample"), help="sample: draw the candidates, judge another time")
    add("--policy_model_cuda_id", type=int, default=0, help="GPU of the model, where there are GPUs (%(default)s)")
    add("--reward_model_cuda_id", type=int, default=1, help="GPU of the judge, or the last one (%(default)s)")
    add("--dtype", default="auto", choices=("auto", "float16", "bfloat16", "float32"), help="(%(default)s)")
    add("--option", nargs="+", default=[], metavar="KEY=VALUE", help="of the back end, such as url or batch_size")
    add("--limit", type=int, help="the first so many questions (default: all)")
    return parser


def run(args: argparse.Namespace, group: str) -> None:
    """Draw, judge, evaluate; each only as far as it has not been done. Prints numbers and paths.

    Args:
        group: ``choice`` for answers in words of any group, ``grounding`` for boxes.

    Raises:
        JobError: a flag that cannot be, no such file or model, or questions without any answer.
    """
    task = _task(args, group)
    options = read_options(args.option)
    if MODEL_TYPES.get(args.model_type, ("",))[0] != "openai":
        options["dtype"] = args.dtype
    decides = deciding(options)
    if torch.cuda.is_available() and MODEL_TYPES.get(args.model_type, ("",))[0] == "transformers":
        options.setdefault("device", _device(args.policy_model_cuda_id))
    job = Job(
        args.model_path, args.model_type, args.eval_target_file.absolute().parent, args.eval_image_root.absolute(),
        args.output_path,
        Sampling(n=args.sample_num, temperature=args.temperature, top_p=args.top_p, seed=args.seed,
                 max_new_tokens=args.max_new_tokens),
        decides, args.limit,
    )  # fmt: skip
    family = _PUBLISHED.get(args.model_name, args.model_name)
    adapter = get_adapter(
        args.model_type, args.model_path, family, args.reasoning_config, later=True,
        image_root=job.image_root, **options,
    )  # fmt: skip
    answered = ask(job, adapter, task, Team())
    adapter.backend.free()  # type: ignore[attr-defined]  # of `later`
    print(answered.speed)
    judging = args.step == "all" and args.reward_model_type != "majority_voting"
    folder = args.output_path / "scores" / task.name
    name = args.reward_name or args.reward_model_type
    main = name if judging else "majority_voting"
    files = [ScoreFile.read(path) for path in sorted(folder.glob("*.jsonl")) if path.stem != name or not judging]
    if judging:
        own = ScoreFile.read(folder / f"{name}.jsonl")
        path = args.reward_model_path or (NANO if args.reward_model_type == "Qwen2Reward" else NANO_CLIP)
        told = {"type": args.reward_model_type, "path": path, "files": weights_of(path), "part": args.score_part}
        scored = own.add(told, questions_of(job, adapter, answered, args.score_part), _judge(args, path, job))
        errors = "".join(f", {count:,} {kind}" for kind, count in sorted(own.errors.items()))
        print(f"{name}: {scored:,} answers scored now, {len(own.scores):,} scores in all{errors}")
        files.insert(0, own)
    result = evaluate(job, adapter, answered, files, main)
    written = result.write(job.output, dated=False)
    paths = [written, written.with_suffix(".jsonl"), written.with_suffix(".html"), written.with_suffix(".png")]
    for page in paths[2:]:
        save_page(chart(result), page)
    print(result, *paths, sep="\n")


def _task(args: argparse.Namespace, group: str) -> Task:
    known = known_tasks()
    boxes = group == "grounding"
    fit = [name for name, task in known.items() if (task.group == "grounding") == boxes and task.group != "caption"]
    if args.task not in fit:
        raise JobError(f"--task {args.task}: one of {', '.join(fit)} is needed")
    if args.limit is not None and args.limit < 1:
        raise JobError(f"--limit must be at least 1: {args.limit}")
    if not args.eval_image_root.is_dir():
        raise JobError(f"no such folder of images: {args.eval_image_root}")
    images = str(args.eval_image_root.absolute())
    return replace(known[args.task], file=args.eval_target_file.name, images=images)


def _judge(args: argparse.Namespace, path: str, job: Job) -> Callable[[], Judge]:
    device = _device(args.reward_model_cuda_id)
    if args.reward_model_type == "clip":
        return lambda: clip_model(FeatureStore(load_clip(path, device), cache=None, progress=False), job.image_root)
    load = partial(Scorer.from_pretrained, path, device, image_root=job.image_root)
    return lambda: score_model(load())


def _device(number: int) -> str:
    count = torch.cuda.device_count()
    return f"cuda:{min(number, count - 1)}" if count else "cpu"
