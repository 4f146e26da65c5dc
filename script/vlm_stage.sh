# shellcheck shell=bash
# Sourced by script/train_pretrain.sh and script/train_sft.sh: fine-tunes Qwen2-VL and measures it on held-out records.
#
# Settings, all from the environment:
#   MODEL_PATH        Qwen2-VL: folder or hub id; unset: the nano twin, on made scenes, on two CPU cores
#   DATA_PATH         conversations (ShareGPT, LLaVA) or captioned images to train on; IMAGE_ROOT folder of the images
#   SUBSET            subset_ids.parquet of select_subset.py, or its folder: train on these pairs alone
#   EVAL_PATH         held-out records of the same form; EVAL_IMAGE_ROOT folder of their images
#   OUTPUT_DIR        checkpoints, final, predictions.jsonl, metrics.json
#   CONFIG_PATH       default config/{pretrain,sft}_finetuning.yaml, or config/nano/vlm_{pretrain,sft}.yaml
#   NUM_PROCESSES     processes, one per GPU (default: as many as there are GPUs)
#   ACCELERATE_CONFIG launch file instead, such as config/accelerate/zero2.yaml
#   NUM_MACHINES, MACHINE_RANK, MAIN_PROCESS_IP   for several nodes: run the script on each, with its rank from 0
#   WANDB_ENABLED, WANDB_PROJECT, GROUP, NAME
# Nano twin only:
#   SCENES            made scenes to train on (default 1500)
# Arguments are keys of the configuration (key=value), and come after all of these.
set -euo pipefail
source "$SCORERS_ROOT/script/launch.sh"

VLM_DATA="output/vlm_data"

# made_data NAME OPTION... writes $VLM_DATA/NAME/chats.jsonl of made scenes unless it is there.
made_data() {
    local target="$VLM_DATA/$1/chats.jsonl"
    if [[ ! -f "$target" ]]; then
        python "$SCORERS_ROOT/python_script/make_vlm_data.py" --output "$target" --size 112 "${@:2}"
    fi
}

# fine_tune pretrain|sft [key=value ...]; the script defines nano_data, which sets DATA_PATH and EVAL_PATH.
fine_tune() {
    local stage="$1" keys=()
    shift
    if [[ -z "${MODEL_PATH:-}" ]]; then
        CONFIG_PATH="${CONFIG_PATH:-$SCORERS_ROOT/config/nano/vlm_$stage.yaml}"
        if [[ -z "${DATA_PATH:-}${SUBSET:-}" ]]; then nano_data; fi
    fi
    CONFIG_PATH="${CONFIG_PATH:-$SCORERS_ROOT/config/${stage}_finetuning.yaml}"
    keys=(
        ${MODEL_PATH:+model.model_name="$MODEL_PATH"}
        ${DATA_PATH:+data.path="$DATA_PATH"}
        ${IMAGE_ROOT:+data.image_root="$IMAGE_ROOT"}
        ${SUBSET:+data.subset="$SUBSET"}
        ${EVAL_PATH:+data.eval_path="$EVAL_PATH"}
        ${EVAL_IMAGE_ROOT:+data.eval_image_root="$EVAL_IMAGE_ROOT"}
        ${OUTPUT_DIR:+save_folder="$OUTPUT_DIR"}
        ${WANDB_ENABLED:+wandb.enabled="$WANDB_ENABLED"}
        ${WANDB_PROJECT:+wandb.project="$WANDB_PROJECT"}
        ${GROUP:+wandb.group="$GROUP"}
        ${NAME:+wandb.name="$NAME"}
    )
    launch "$SCORERS_ROOT/python_script/train_vlm.py" "$CONFIG_PATH" "${keys[@]}" "$@"
}
