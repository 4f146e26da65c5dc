"""Rewrite a published GeoChat, SkySenseGPT, VHM or LHRS-Bot-Nova checkpoint for transformers, without remote code.

    python python_script/convert_checkpoint.py geochat-7B output/geochat
    python python_script/convert_checkpoint.py vhm_7B output/vhm --tower clip-vit-large-patch14-336
    python python_script/convert_checkpoint.py LHRS-Bot-Nova output/lhrs --text_base Meta-Llama-3-8B-Instruct

SOURCE is the published folder, for LHRS-Bot-Nova the one with FINAL.pt and TextLoRA. TARGET gets the weights (every one
of SOURCE, or an error that names those that do not fit), the processor and the chat template. Nothing is fetched.
"""

import argparse
from pathlib import Path
from typing import get_args

from src.config import exit_on_job_error
from src.model.vlm.convert import convert
from src.model.vlm.templates import Compat


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("source", type=Path, help="published checkpoint")
    made.add_argument("target", type=Path, help="new folder")
    made.add_argument("--tower", type=Path, help="folder of the vision tower, where SOURCE lacks its weights")
    made.add_argument("--text_base", type=Path, help="LHRS-Bot-Nova: folder of Meta-Llama-3-8B-Instruct")
    lora = made.add_mutually_exclusive_group()
    lora.add_argument("--text_lora", type=Path, help="LHRS-Bot-Nova: the adapter's folder; default: TextLoRA in SOURCE")
    lora.add_argument("--without_lora", action="store_true", help="LHRS-Bot-Nova: do without the adapter, on purpose")
    made.add_argument(
        "--compat",
        choices=get_args(Compat),
        default="intended",
        help="published: what the published loaders compute, with the stock tower, without <s> (default: %(default)s)",
    )
    return made


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with exit_on_job_error():
        print(f"model  {convert(**vars(args))}")


if __name__ == "__main__":
    main()
