"""Trainings in this process, and what ``accelerate launch`` tells those that it starts, for two of them on CPUs."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from src.config import run_program

ROOT = Path(__file__).resolve().parents[2]


def run_here(main: Callable, schema: type, config: str, arguments: Sequence[str]) -> str:
    """What a program prints, run in this process, which has imported all that takes longer than a small training."""
    with redirect_stdout(io.StringIO()) as printed:
        run_program(main, schema, ROOT / config, arguments)
    return printed.getvalue()


def launch_file(name: str) -> dict[str, str]:
    """The environment of ``accelerate launch --config_file config/accelerate/NAME.yaml``, or a skipped test."""
    line = ["--config_file", str(ROOT / f"config/accelerate/{name}.yaml"), "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(line))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    environment = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    told = {key: value for key, value in environment.items() if key.startswith(("ACCELERATE_", "FSDP_"))}
    if not args.use_deepspeed:
        return told
    told["DS_ACCELERATOR"] = "cpu"
    if not shutil.which("g++"):
        pytest.skip("DeepSpeed compiles a helper with g++")
    # Two processes that compile DeepSpeed's helper at once would abort.
    build = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load()"
    subprocess.run([sys.executable, "-c", build], env={**os.environ, **told}, check=True, capture_output=True)
    return told
