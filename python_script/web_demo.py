"""The web page: chat about pictures, score texts and pick the best of N answers, look through a scored data set.

    python python_script/web_demo.py                                    # the embedded models, at http://127.0.0.1:7860
    python python_script/web_demo.py --scores output/mine --class-column label
    python python_script/web_demo.py -c PumpkinCat/Qwen2VL-7B-RS-R1 --reasoning --scorer-path PumpkinCat/ScoreRS

Listens on this machine alone unless told otherwise (--server-name 0.0.0.0). There is no password: whoever reaches the
page may use the models and see the data set. The page itself asks no other server for anything.
"""

import argparse
import logging
from pathlib import Path

from src.config import exit_on_job_error
from src.curation.scorer import NANO
from src.errors import JobError
from src.model.checkpoint import locate

VLMS = ("assets/nano/vlm", "assets/nano/base")  # the first that is there
REASONING_VLMS = ("assets/nano/vlm-r1", *VLMS)
QUICK_START = "output/quickstart"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-c", "--checkpoint-path", metavar="MODEL", help="vision-language model, folder or hub id (default: embedded)")
    add("--scorer-path", metavar="MODEL", default=NANO, help="score model, folder or hub id (%(default)s)")
    add("--scores", metavar="DIR", help=f"what score_dataset.py wrote, to explore (default {QUICK_START} if there)")
    add("--class-column", metavar="NAME", help="column of that data set to filter by")
    add("--cpu-only", action="store_true", help="run on the CPU though there is a GPU")
    add("--flash-attn2", action="store_true", help="insist on FlashAttention 2, which is used anyway where it can be")
    add("--reasoning", action="store_true", help="ask the model to think first, and show its thoughts folded away")
    add("--share", action="store_true", help="open a public link through Gradio's servers")
    add("--inbrowser", action="store_true", help="open the page in a browser")
    add("--server-port", type=int, default=7860, help="(%(default)s)")
    add("--server-name", default="127.0.0.1", help="address to listen on (%(default)s)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with exit_on_job_error():
        check_attention(args.flash_attn2, args.cpu_only)
        vlm = args.checkpoint_path or embedded(REASONING_VLMS if args.reasoning else VLMS)
        from src.serving.web.models import Models
        from src.serving.web.page import build_page, serve
        from src.serving.web.scored_data import ScoredData

        folder = args.scores or (QUICK_START if Path(QUICK_START, "summary.json").is_file() else None)
        data = ScoredData(folder, args.class_column) if folder else None
        models = Models.load(vlm, args.scorer_path, "cpu" if args.cpu_only else "auto")
        names = {"answers": vlm, "scores": args.scorer_path} | ({"data": folder} if folder else {})
        page = build_page(models, names, data, args.reasoning)
        serve(
            page,
            server_name=args.server_name,
            server_port=args.server_port,
            share=args.share,
            inbrowser=args.inbrowser,
        )


def embedded(paths: tuple[str, ...]) -> str:
    """The first of these models that ships with the project. Raises JobError if none does."""
    found = next((path for path in paths if Path(locate(path)).is_dir()), None)
    if found is None:
        raise JobError(f"no embedded model: none of {', '.join(paths)} is here; give one with -c")
    return found


def check_attention(wanted: bool, cpu_only: bool) -> None:
    """Raise JobError if FlashAttention is insisted on and cannot be used."""
    if not wanted:
        return
    import torch
    from transformers.utils import is_flash_attn_2_available

    if cpu_only or not torch.cuda.is_available():
        raise JobError("--flash-attn2 needs a GPU" + (", and --cpu-only forbids it" if cpu_only else ""))
    if not is_flash_attn_2_available():
        raise JobError("--flash-attn2 needs the package flash-attn")


if __name__ == "__main__":
    main()
