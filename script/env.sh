# shellcheck shell=bash
# Sourced by every shell entry point, which may be called from any folder:
#   source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# Sets up the environment if needed, puts it first on PATH, and makes offline the default. To use the model hub or
# Weights & Biases, set the variable before the call:  HF_HUB_OFFLINE=0 TRANSFORMERS_OFFLINE=0 bash script/...
set -euo pipefail

SCORERS_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
SCORERS_ENV="$(bash "$SCORERS_ROOT/basic_env_setup.sh" --path)"
export SCORERS_ROOT
export PATH="$SCORERS_ENV/bin:$PATH"
export PYTHONPATH="$SCORERS_ROOT${PYTHONPATH:+:$PYTHONPATH}"

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}"
export WANDB_MODE="${WANDB_MODE:-offline}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export GRADIO_ANALYTICS_ENABLED="${GRADIO_ANALYTICS_ENABLED:-False}"
export HF_HUB_DISABLE_TELEMETRY="${HF_HUB_DISABLE_TELEMETRY:-1}"
export DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
