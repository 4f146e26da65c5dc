#!/usr/bin/env bash
# Third stage of the score model: the same parts learn from the hardest preferences, near misses. Then it is measured.
# Hardware: with no settings the nano twin, about three minutes on two CPU cores; published: 8 GPUs, ZeRO-2 with offloading.
#
#   bash script/train_reward_third_stage.sh             # goes on from output/reward_stage2/final
#   MODEL_PATH=Qwen/Qwen2-VL-7B-Instruct TARGET_ROOT=preferences/hard IMAGE_ROOT=images HELD_OUT=preferences/held_out \
#       ACCELERATE_CONFIG=config/accelerate/zero2.yaml bash script/train_reward_third_stage.sh [key=value ...]
#
# All settings: script/reward_stage.sh. All keys: config/reward_training_stage3.yaml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$SCORERS_ROOT/script/reward_stage.sh"

# Near misses in the words of the right caption, and captions of other scenes lest those be forgotten.
NANO_KEYS=(optimizer.learning_rate=1.0e-4)
nano_data() {
    make_set nano_stage3/scenes scenes scenes.count="$SCENES" scenes.seed=6 scenes.size=112 \
        kinds=[wrong_object,wrong_count,wrong_colour,wrong_relation,invented_object,other_scene,garbled]
    captions_set nano_stage3/captions seed=2 kinds=[other_class,same_class]
    captions_set nano_stage3/captions_again seed=3 kinds=[other_class,nearest]
}

train_and_measure 3 "$@"
