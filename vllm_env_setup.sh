#!/usr/bin/env bash
# Installs an environment with vLLM beside the basic one. See --help.
#
# What the wheel vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl (336 MB) says in its METADATA (Requires-Dist):
#   torch==2.14.0, torchvision==0.29.0, transformers>=5.16.1,<5.21.0: the versions of requirements.lock;
#   pillow>=13.0.0 (gradio 6.31 wants pillow<13), fastapi<0.137.0, numba==0.65.0 (so numpy<2.4), and on Python 3.12
#   setuptools<81: not the versions of requirements.lock, hence an environment of its own, without gradio;
#   certifi>=2026.10.19: the release 2026.10.19.post1 answers it, but mirrors of the package index may not have it yet.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
version="0.33.0"
source "$root/script/setup_lib.sh"

usage() {
    cat <<HELP
usage: bash vllm_env_setup.sh [--help]

Installs vLLM $version, ScoreRS and what scoring and evaluation need
  - into the active virtual environment or conda environment, unless another set-up made it, else
  - into .venv-vllm in the project folder, made with python3.12 or python3.11, whichever is there.
The scripts of script/ run in it when it is active. It has no gradio, deepspeed, trl, wandb or tensorboard: training
and the web page run in the basic environment. Needs Linux on x86-64 and about 12 GB of disk; vLLM itself needs a GPU
to run, not to install.

  PYTHON=/path/to/python3.12    the interpreter that makes .venv-vllm
HELP
}

explain_failure() {
    local log="$1"
    show_failure "$log"
    if grep -E '^ERROR:.*certifi|^ +.*certifi>=2026\.10\.19' "$log" >/dev/null; then
        fail "vLLM $version could not be installed: it asks for certifi 2026.10.19 or newer, and the package index in use \
offers none (a mirror may lag behind). Nothing is wrong with this project or this machine. Try again once the index \
has that release, or let pip see an index that has it; the basic environment is untouched and runs everything but the \
vLLM back end. pip's full output: $log"
    fi
    fail "pip failed; its last lines are above, all of them in $log"
}

case "${1:-}" in
    --help | -h) usage ;;
    "") install_engine vllm "vllm==$version" ;;
    *)
        usage >&2
        fail "unknown argument '$1'"
        ;;
esac
