"""Import the stack and print its versions, the device and the attention that models will use.

Usage: python python_script/show_versions.py
"""

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import sys
import warnings

STACK = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "peft": "peft",
    "trl": "trl",
    "datasets": "datasets",
    "deepspeed": "deepspeed",
    "qwen-vl-utils": "qwen_vl_utils",
    "open_clip_torch": "open_clip",
    "gradio": "gradio",
    "wandb": "wandb",
    "omegaconf": "omegaconf",
    "duckdb": "duckdb",
    "pillow": "PIL",
}


def main() -> int:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    warnings.simplefilter("ignore")
    failures = {}
    rows = [("python", platform.python_version())]
    for distribution, module in STACK.items():
        chatter = io.StringIO()  # some packages report on the machine while they are imported
        try:
            with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
                importlib.import_module(module)
            rows.append((distribution, importlib.metadata.version(distribution)))
        except Exception as error:
            failures[distribution] = error
            rows.append((distribution, "FAILED"))
    if "torch" not in failures and "transformers" not in failures:
        rows += machine_rows()

    width = max(len(name) for name, _ in rows)
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows))
    for distribution, reason in failures.items():
        print(f"{distribution} cannot be imported: {type(reason).__name__}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def machine_rows() -> list[tuple[str, str]]:
    """The device and the attention implementation that models will use, as rows of the table."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = f"{gpus} x {torch.cuda.get_device_name(0)}" if gpus else "CPU (no CUDA device)"
    attention = "flash_attention_2" if gpus and is_flash_attn_2_available() else "sdpa"
    return [("device", device), ("attention", attention)]


if __name__ == "__main__":
    sys.exit(main())
