#!/usr/bin/env bash
# Installs an environment with LMDeploy beside the basic one. See --help.
#
# What the wheel lmdeploy-0.18.0-cp311-cp311-manylinux_2_28_x86_64.whl (107 MB) says in its METADATA (Requires-Dist):
#   torch<=2.12.1, torchvision<=0.27.1, triton<=3.7.1, peft<=0.14.0: older than those of requirements.lock, hence an
#   environment of its own; transformers>=4.56 without some releases before 5.10, so that 5.16 to 5.20 will do.
# torch and torchvision are named, so that pip need not try one release after the other; the rest it finds itself.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
version="0.18.0"
source "$root/script/setup_lib.sh"

usage() {
    cat <<HELP
usage: bash lmdeploy_env_setup.sh [--help]

Installs LMDeploy $version, ScoreRS and what scoring and evaluation need
  - into the active virtual environment or conda environment, unless another set-up made it, else
  - into .venv-lmdeploy in the project folder, made with python3.12 or python3.11, whichever is there.
The scripts of script/ run in it when it is active. It has no gradio, deepspeed, trl, wandb or tensorboard, and its peft
is too old for training: training and the web page run in the basic environment. Needs Linux on x86-64 and about 12 GB
of disk; LMDeploy itself needs a GPU to run, not to install.

  PYTHON=/path/to/python3.12    the interpreter that makes .venv-lmdeploy
HELP
}

explain_failure() {
    show_failure "$1"
    fail "pip failed; its last lines are above, all of them in $1"
}

case "${1:-}" in
    --help | -h) usage ;;
    "") install_engine lmdeploy "lmdeploy==$version" torch==2.12.1 torchvision==0.27.1 ;;
    *)
        usage >&2
        fail "unknown argument '$1'"
        ;;
esac
