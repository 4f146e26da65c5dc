#!/usr/bin/env bash
# Fine-tunes the pretrained Qwen2-VL on conversations: adapters on its language model, published values.
# Hardware: with no settings the nano twin, all of it, a few minutes on two CPU cores; published: 8 GPUs.
#
#   bash script/train_sft.sh            # goes on from output/vlm_pretrain/final
#   MODEL_PATH=output/vlm_pretrain/final DATA_PATH=sft.json SUBSET=output/mine EVAL_PATH=held_out.json IMAGE_ROOT=images \
#       ACCELERATE_CONFIG=config/accelerate/zero2.yaml bash script/train_sft.sh [key=value ...]
#
# All settings: script/vlm_stage.sh. All keys: config/sft_finetuning.yaml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$SCORERS_ROOT/script/vlm_stage.sh"

nano_data() {
    made_data sft --scenes "${SCENES:-1500}" --seed 21 --questions 3 --turns 3
    made_data held_out --scenes 140 --seed 22
    DATA_PATH="$VLM_DATA/sft/chats.jsonl" EVAL_PATH="${EVAL_PATH:-$VLM_DATA/held_out/chats.jsonl}"
}

fine_tune sft "$@"
