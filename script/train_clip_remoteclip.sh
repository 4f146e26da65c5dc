#!/usr/bin/env bash
# Fine-tunes CLIP on captioned images, then measures zero-shot accuracy before and after where class folders are given.
# As it is, it fine-tunes the nano twin on made scenes, in a few minutes on two CPU cores.
#
# Settings, all from the environment (those of the published script and a few more):
#   MODEL_PATH        CLIP: folder or hub id, or an open_clip checkpoint; unset: the nano twin
#   CSV_PATH          captioned data set, in any format that score_dataset.py reads; IMAGE_PATH the folder of its images
#   SUBSET            subset_ids.parquet of select_subset.py, or its folder: train on these pairs alone
#   FILTER_RECORD=true SAVE_TOP_PERCENT=0.7 FILTER_COLUMN=clip_score   keep the best part by a column of the data instead
#   IMAGE_COLUMN, TARGET_COLUMN   columns of images and captions
#   VAL_DATA_PATH     folder of class folders NAME_Image, for zero-shot accuracy at each epoch
#   OUTPUT_DIR        default output/clip: checkpoints, final, metrics.json
#   CONFIG_PATH       default config/clip_training_remoteclip.yaml, or config/nano/clip_training.yaml
#   NUM_PROCESSES     processes, one per GPU (default: as many as there are GPUs)
#   ACCELERATE_CONFIG launch file instead, such as config/accelerate/ddp.yaml
#   NUM_MACHINES, MACHINE_RANK, MAIN_PROCESS_IP   for several nodes, with a launch file: run the script on each
#   WANDB_ENABLED, WANDB_PROJECT, GROUP, NAME
# Nano twin only: SCENES made scenes to train on where no data are given (default 2000)
# Arguments are keys of the configuration (key=value), and come after all of these.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
source "$SCORERS_ROOT/script/launch.sh"

keys=()

# ---- settings ---------------------------------------------------------------------------------------------------------
if [[ -z "${MODEL_PATH:-}" ]]; then
    CONFIG_PATH="${CONFIG_PATH:-$SCORERS_ROOT/config/nano/clip_training.yaml}"
    if [[ -z "${CSV_PATH:-}${SUBSET:-}" ]]; then
        scenes=output/nano_clip_scenes
        if [[ ! -f "$scenes/pairs.parquet" ]]; then
            python "$SCORERS_ROOT/python_script/make_nano_clip.py" --output "$scenes" --scenes "${SCENES:-2000}"
        fi
        CSV_PATH="$scenes/pairs.parquet" IMAGE_COLUMN="${IMAGE_COLUMN:-image}" TARGET_COLUMN="${TARGET_COLUMN:-captions}"
    fi
fi
CONFIG_PATH="${CONFIG_PATH:-$SCORERS_ROOT/config/clip_training_remoteclip.yaml}"
keys+=(
    ${MODEL_PATH:+model.model_name="$MODEL_PATH"}
    ${CSV_PATH:+data.csv_path="$CSV_PATH"}
    ${IMAGE_PATH:+data.image_path="$IMAGE_PATH"}
    ${SUBSET:+data.subset="$SUBSET"}
    ${IMAGE_COLUMN:+data.image_column="$IMAGE_COLUMN"}
    ${TARGET_COLUMN:+data.target_column="$TARGET_COLUMN"}
    ${FILTER_RECORD:+data.filter_record="$FILTER_RECORD"}
    ${FILTER_COLUMN:+data.filter_column="$FILTER_COLUMN"}
    ${SAVE_TOP_PERCENT:+data.save_top_percent="$SAVE_TOP_PERCENT"}
    ${VAL_DATA_PATH:+data.val_data_path="$VAL_DATA_PATH"}
    ${OUTPUT_DIR:+save_folder="$OUTPUT_DIR"}
    ${WANDB_ENABLED:+wandb.enabled="$WANDB_ENABLED"}
    ${WANDB_PROJECT:+wandb.project="$WANDB_PROJECT"}
    ${GROUP:+wandb.group="$GROUP"}
    ${NAME:+wandb.name="$NAME"}
)

# ---- train ------------------------------------------------------------------------------------------------------------
launch "$SCORERS_ROOT/python_script/train_clip.py" "$CONFIG_PATH" "${keys[@]}" "$@"
