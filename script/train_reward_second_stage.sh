#!/usr/bin/env bash
# Second stage of the score model: language model and head learn from preferences about images. Then it is measured.
# Hardware: with no settings the nano twin, about three minutes on two CPU cores; published: 8 GPUs, ZeRO-2 with offloading.
#
#   bash script/train_reward_second_stage.sh            # goes on from output/reward_stage1/final
#   MODEL_PATH=Qwen/Qwen2-VL-7B-Instruct TARGET_ROOT=preferences/captions IMAGE_ROOT=images HELD_OUT=preferences/held_out \
#       ACCELERATE_CONFIG=config/accelerate/zero2.yaml bash script/train_reward_second_stage.sh [key=value ...]
#
# All settings: script/reward_stage.sh. All keys: config/reward_training_stage2.yaml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$SCORERS_ROOT/script/reward_stage.sh"

# Every kind of wrong caption, half of the near misses in words of their own.
nano_data() {
    make_set nano_stage2/scenes scenes scenes.count="$SCENES" scenes.seed=5 scenes.size=112 scenes.alike=0.5
    captions_set nano_stage2/captions kinds=[other_class,same_class]
    captions_set nano_stage2/captions_again kinds=[other_class,same_class] seed=1
}

train_and_measure 2 "$@"
