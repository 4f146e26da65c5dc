#!/usr/bin/env bash
# Does curation pay for fine-tuning? Makes scenes with questions, trains a score model on right and wrong answers about
# some of them, damages answers about others, cuts these by several rules, and fine-tunes one Qwen2-VL on each part.
# About half an hour on two CPU cores; a rerun goes on where it stopped, within a training of the score model from its last
# checkpoint.
#
# Settings from the environment:
#   OUTPUT_DIR     default output/vlm_curation_experiment: data, score model, score tables, a file per training, results
#   SCORER_STEPS   of the score model (default 400)
# Arguments are keys of config/nano/vlm_curation_experiment.yaml (key=value); output_dir=FOLDER stands for OUTPUT_DIR.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

out="${OUTPUT_DIR:-output/vlm_curation_experiment}"
for argument in "$@"; do
    case "$argument" in output_dir=*) out="${argument#*=}" ;; esac
done
programs="$SCORERS_ROOT/python_script" nano="$SCORERS_ROOT/config/nano"

# ---- scenes and questions ---------------------------------------------------------------------------------------------
python "$programs/vlm_curation_experiment.py" "$@" output_dir="$out" prepare_only=true

# ---- score model ------------------------------------------------------------------------------------------------------
# metrics.json is what a training writes last: a model without it may be half written.
if [[ ! -f "$out/scorer/metrics.json" ]]; then
    python "$programs/train_reward.py" "$nano/reward_training.yaml" model.base_model_path=assets/nano/base \
        model.train_vision_model=true data.target_root="$out/learn.parquet" data.eval_share=0.03 run_strategy=step \
        run_duration="${SCORER_STEPS:-400}" optimizer.learning_rate=1e-3 checkpoint.save_interval=100 \
        data.cache_dir="$out/cache" save_folder="$out/scorer" load_path=last
fi

# ---- parts, trainings and figures -------------------------------------------------------------------------------------
python "$programs/vlm_curation_experiment.py" "$@" output_dir="$out"
