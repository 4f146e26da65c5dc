#!/usr/bin/env bash
# Reinforces the nano Qwen2-VL with rewards of its answers (GRPO): by rules for questions and boxes, and by the embedded
# score model, served beside it on a free port, for captions. First, a cold start teaches the thinking format.
#
#   bash script/train_grpo_small.sh [key=value ...]
#
# Settings from the environment:
#   MODEL_PATH     a Qwen2-VL that knows the thinking format already: no cold start
#   START_PATH     what the cold start begins from (default assets/nano/vlm)
#   SCENES         made scenes to reinforce on (default 2000)
#   COLD_SCENES    made scenes of the cold start (default 2000), COLD_STEPS its steps (default 80)
#   REWARD_URL     a score server that runs already; REWARD_API_KEY its key. Else one is started, and ended with the script
#   SCORER_PATH    score model of the server that is started (default assets/nano/scorer)
#   DATA_PATH      conversations to reinforce on, and EVAL_PATH held-out ones, instead of made scenes
#   OUTPUT_DIR     default output/grpo: checkpoints, final, predictions.jsonl, metrics.json, rewards.png
# Arguments are keys of config/nano/grpo.yaml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$SCORERS_ROOT/script/vlm_stage.sh"
source "$SCORERS_ROOT/script/score_server.sh"
programs="$SCORERS_ROOT/python_script"

# ---- scenes -----------------------------------------------------------------------------------------------------------
# Yes or no is right by chance half of the time: asked as often as the rest, it becomes the answer to numbers as well.
[[ -n "${DATA_PATH:-}" ]] || made_data reinforce --scenes "${SCENES:-2000}" --seed 24 \
    --kinds count count count colour colour yes_no relation scene grounding caption
[[ -n "${EVAL_PATH:-}" ]] || made_data held_out --scenes 840 --seed 22

# ---- cold start -------------------------------------------------------------------------------------------------------
if [[ -z "${MODEL_PATH:-}" ]]; then
    MODEL_PATH=output/vlm_thinking/final
    start="${START_PATH:-$SCORERS_ROOT/assets/nano/vlm}"
    # metrics.json is what a training writes last: a model without it may be half written.
    if [[ ! -f output/vlm_thinking/metrics.json ]]; then
        made_data thinking --scenes "${COLD_SCENES:-2000}" --seed 23 --questions 3 --thinking
        launch "$programs/train_vlm.py" "$SCORERS_ROOT/config/nano/vlm_sft.yaml" model.model_name="$start" \
            data.path="$VLM_DATA/thinking/chats.jsonl" run_strategy=step run_duration="${COLD_STEPS:-80}" \
            optimizer.learning_rate=1e-3 save_folder=output/vlm_thinking save_overwrite=true
    fi
fi

# ---- score server -----------------------------------------------------------------------------------------------------
if [[ -z "${REWARD_URL:-}" ]]; then start_score_server "$SCORERS_ROOT" exec python; fi

# ---- reinforcement ----------------------------------------------------------------------------------------------------
export REWARD_URL
launch "$programs/train_grpo.py" "$SCORERS_ROOT/config/nano/grpo.yaml" model.model_name="$MODEL_PATH" \
    data.path="${DATA_PATH:-$VLM_DATA/reinforce/chats.jsonl}" data.eval_path="${EVAL_PATH:-$VLM_DATA/held_out/chats.jsonl}" "$@"
