#!/usr/bin/env bash
# First stage of the score model: the reward head alone learns from preferences about text. Then it is measured.
# Hardware: with no settings the nano twin, a minute on two CPU cores; published: Qwen2-VL-7B on 8 GPUs.
#
#   bash script/train_reward_first_stage.sh
#   MODEL_PATH=Qwen/Qwen2-VL-7B-Instruct TARGET_ROOT=preferences/text HELD_OUT=preferences/held_out \
#       ACCELERATE_CONFIG=config/accelerate/zero2.yaml bash script/train_reward_first_stage.sh [key=value ...]
#
# All settings: script/reward_stage.sh. All keys: config/reward_training_stage1.yaml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$SCORERS_ROOT/script/reward_stage.sh"

# Text that says nothing, or cannot be read, against captions: no image is needed to tell.
NANO_KEYS=(model.train_text_model=false optimizer.learning_rate=2.0e-2 loss.text_weight=0)
nano_data() {
    make_set nano_stage1/scenes scenes scenes.count="$SCENES" scenes.seed=4 images=false \
        kinds=[vague,off_topic,garbled]
    captions_set nano_stage1/captions images=false kinds=[truncated,misspelt]
    make_set nano_held_out_text scenes scenes.count=400 scenes.seed=8 images=false kinds=[vague,off_topic,garbled]
    HELD_OUT="${HELD_OUT:-$PREFERENCES/nano_held_out_text.parquet}"
}

train_and_measure 1 "$@"
