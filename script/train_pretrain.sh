#!/usr/bin/env bash
# Pretrains Qwen2-VL on captions: its visual merger alone, published values.
# Hardware: with no settings the nano twin, about a minute on two CPU cores; published: 8 GPUs.
#
#   bash script/train_pretrain.sh
#   MODEL_PATH=Qwen/Qwen2-VL-7B-Instruct DATA_PATH=captions.json IMAGE_ROOT=images \
#       ACCELERATE_CONFIG=config/accelerate/zero2.yaml bash script/train_pretrain.sh [key=value ...]
#
# All settings: script/vlm_stage.sh. All keys: config/pretrain_finetuning.yaml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$SCORERS_ROOT/script/vlm_stage.sh"

nano_data() {
    made_data pretrain --kinds caption --scenes "${SCENES:-1500}" --seed 20
    made_data held_out --scenes 140 --seed 22
    DATA_PATH="$VLM_DATA/pretrain/chats.jsonl" EVAL_PATH="${EVAL_PATH:-$VLM_DATA/held_out/chats.jsonl}"
}

fine_tune pretrain "$@"
