#!/usr/bin/env bash
# Reinforces Qwen2-VL with veRL's trainer, rewarded by rules and by the score server. Unedited, the nano twin on two CPU
# cores: made scenes, and the embedded score model served beside it on a free port.
#
#   bash customVeRL/examples/train_grpo.sh [key=value ...]
#
# Settings from the environment:
#   CONFIG_NAME     grpo_nano (default) or grpo_7b, of customVeRL/examples/config
#   MODEL_PATH      policy: folder or hub id (nano default: assets/nano/vlm-r1, which knows the thinking format)
#   DATA_PATH       rows to train on; EVAL_PATH held-out ones (nano default: made scenes)
#   OUTPUT_DIR      default output/verl: checkpoints, metrics-<start>.jsonl, validation, rollouts, tensorboard
#   REWARD_URL      a score server that runs already; REWARD_API_KEY its key. Else one is started, and ended with the script
#   SCORER_PATH     score model of the server that is started (default assets/nano/scorer)
#   SCORERS_PYTHON  Python of the basic environment, for server and made scenes (default .venv/bin/python of the project)
#   VERL_ENV        environment of veRL (default customVeRL/.venv), made by customVeRL/env_setup.sh if it is not there
# Arguments are keys of the configuration, as trainer.total_training_steps=40.
set -euo pipefail

verl_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
root="$(cd "$verl_root/.." && pwd)"
source "$root/script/score_server.sh"
VERL_ENV="${VERL_ENV:-$verl_root/.venv}"
export VERL_ENV
CONFIG_NAME="${CONFIG_NAME:-grpo_nano}"
OUTPUT_DIR="$(mkdir -p "${OUTPUT_DIR:-output/verl}" && cd "${OUTPUT_DIR:-output/verl}" && pwd)"
export OUTPUT_DIR
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}" WANDB_MODE="${WANDB_MODE:-offline}"
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}" DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
export VERL_FILE_LOGGER_PATH="${VERL_FILE_LOGGER_PATH:-$OUTPUT_DIR/metrics-$(date -u +%Y%m%dT%H%M%S).jsonl}"
export TENSORBOARD_DIR="${TENSORBOARD_DIR:-$OUTPUT_DIR/tensorboard}"
[[ -x "$VERL_ENV/bin/python" ]] || bash "$verl_root/env_setup.sh"

# The basic environment's Python, and its programs without what is active here.
scorers() {
    local python="${SCORERS_PYTHON:-$root/.venv/bin/python}"
    [[ -x "$python" ]] || {
        echo "$python is not there: bash basic_env_setup.sh, or name the Python of that environment: SCORERS_PYTHON=..." >&2
        exit 1
    }
    PYTHONPATH="$root" exec "$python" "$@"
}

if [[ "$CONFIG_NAME" == grpo_nano ]]; then
    export VERL_PLATFORM="${VERL_PLATFORM:-cpu}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    export RAY_worker_niceness="${RAY_worker_niceness:-0}" # Ray's default, 15, waits for whatever else the machine does
    unset CUDA_VISIBLE_DEVICES # Ray refuses an empty list for the GPU that is counted and not there
    MODEL_PATH="${MODEL_PATH:-$root/assets/nano/vlm-r1}"
    if [[ -z "${DATA_PATH:-}" ]]; then
        DATA_PATH="$OUTPUT_DIR/data/train.parquet"
        EVAL_PATH="${EVAL_PATH:-$OUTPUT_DIR/data/held_out.parquet}"
        [[ -f "$DATA_PATH" ]] ||
            (scorers "$root/python_script/make_vlm_data.py" --output "$DATA_PATH" --scenes 64 --seed 24 --size 112)
        [[ -f "$EVAL_PATH" ]] ||
            (scorers "$root/python_script/make_vlm_data.py" --output "$EVAL_PATH" --scenes 16 --seed 22 --size 112)
    fi
fi
[[ -n "${DATA_PATH:-}" ]] || { echo "DATA_PATH is not set: a Parquet file, or a folder of them" >&2; exit 1; }
if [[ -n "${MODEL_PATH:-}" ]]; then export MODEL_PATH; fi
held_out=(data.val_files="${EVAL_PATH:-null}")
if [[ -z "${EVAL_PATH:-}" ]]; then held_out+=(trainer.test_freq=-1 trainer.val_before_train=false); fi

# ---- score server -----------------------------------------------------------------------------------------------------
if [[ -z "${REWARD_URL:-}" ]]; then start_score_server "$root" scorers; fi

# ---- reinforcement ----------------------------------------------------------------------------------------------------
"$VERL_ENV/bin/python" -m verl.trainer.main_ppo --config-path "$verl_root/examples/config" --config-name "$CONFIG_NAME" \
    data.train_files="$DATA_PATH" "${held_out[@]}" "$@"
