# shellcheck shell=bash
# Sourced by script/train_reward_{first,second,third}_stage.sh: trains a stage of the score model, then measures it.
#
# Settings, all from the environment (those of the published scripts and a few more):
#   MODEL_PATH          Qwen2-VL checkpoint; unset: the nano twin, on made scenes, on two CPU cores
#   REWARD_MODEL_PATH   score model of the stage before (default: what that stage's script wrote)
#   TARGET_ROOT         preference sets to train on; IMAGE_ROOT their images
#   HELD_OUT            preference sets to measure on, HELD_OUT_IMAGES their images; unset with a MODEL_PATH: no measuring
#   OUTPUT_DIR          default output/reward_stageN: checkpoints, final, metrics.json, accuracy/
#   CONFIG_PATH         default config/reward_training_stageN.yaml, or config/nano/reward_training.yaml
#   ACCELERATE_CONFIG   launch file, such as config/accelerate/zero2.yaml; unset: one process
#   NUM_MACHINES, MACHINE_RANK, MAIN_PROCESS_IP   for several nodes: run the script on each, with its rank from 0
#   TRAIN_VALUE_HEAD, TRAIN_TEXT_MODEL, TRAIN_VISION_MODEL, WANDB_ENABLED, WANDB_PROJECT, GROUP, NAME
# Nano twin only:
#   SCENES              made scenes a stage (default 3000)
#   CAPTIONS            captioned data set with columns image, captions and label, to learn from besides
# Arguments are keys of the configuration (key=value), and come after all of these.
set -euo pipefail
source "$SCORERS_ROOT/script/launch.sh"

PREFERENCES="output/preferences"
SCENES="${SCENES:-3000}"
NANO_KEYS=() # what a stage's nano twin changes in its configuration

# make_set NAME KEY=VALUE... writes $PREFERENCES/NAME.parquet unless it is there.
make_set() {
    local target="$PREFERENCES/$1.parquet"
    if [[ ! -f "$target" ]]; then
        python "$SCORERS_ROOT/python_script/build_preference.py" "${@:2}" output="$target"
    fi
}

# captions_set NAME KEY=VALUE... does so from CAPTIONS, if that is set.
captions_set() {
    if [[ -n "${CAPTIONS:-}" ]]; then
        make_set "$1" captions data.path="$CAPTIONS" data.image_column=image data.text_column=captions \
            data.source_column=label "${@:2}"
    fi
}

# train_and_measure STAGE [key=value ...]; a stage's script defines nano_data, which makes its sets in $PREFERENCES/nano_stageN.
train_and_measure() {
    local stage="$1" keys=() start=python argument machine="${MACHINE_RANK:-0}"
    shift
    OUTPUT_DIR="${OUTPUT_DIR:-output/reward_stage$stage}"
    for argument in "$@"; do
        case "$argument" in save_folder=*) OUTPUT_DIR="${argument#*=}" ;; esac
    done

    # ---- settings -----------------------------------------------------------------------------------------------------
    if ((stage > 1)); then
        REWARD_MODEL_PATH="${REWARD_MODEL_PATH:-output/reward_stage$((stage - 1))/final}"
        export REWARD_MODEL_PATH
    fi
    if [[ -z "${MODEL_PATH:-}" ]]; then
        CONFIG_PATH="${CONFIG_PATH:-$SCORERS_ROOT/config/nano/reward_training.yaml}"
        keys+=("${NANO_KEYS[@]}" run_name="nano-reward-stage$stage")
        if [[ -z "${TARGET_ROOT:-}" ]]; then
            nano_data
            TARGET_ROOT="$PREFERENCES/nano_stage$stage"
        fi
        if [[ -z "${HELD_OUT:-}" ]]; then
            make_set nano_held_out scenes scenes.count=400 scenes.seed=8
            HELD_OUT="$PREFERENCES/nano_held_out.parquet"
        fi
    fi
    CONFIG_PATH="${CONFIG_PATH:-$SCORERS_ROOT/config/reward_training_stage$stage.yaml}"
    keys+=(
        save_folder="$OUTPUT_DIR"
        ${MODEL_PATH:+model.base_model_path="$MODEL_PATH"}
        ${TARGET_ROOT:+data.target_root="$TARGET_ROOT"}
        ${IMAGE_ROOT:+data.image_root="$IMAGE_ROOT"}
        ${TRAIN_VALUE_HEAD:+model.train_value_head="$TRAIN_VALUE_HEAD"}
        ${TRAIN_TEXT_MODEL:+model.train_text_model="$TRAIN_TEXT_MODEL"}
        ${TRAIN_VISION_MODEL:+model.train_vision_model="$TRAIN_VISION_MODEL"}
        ${WANDB_ENABLED:+wandb.enabled="$WANDB_ENABLED"}
        ${WANDB_PROJECT:+wandb.project="$WANDB_PROJECT"}
        ${GROUP:+wandb.group="$GROUP"}
        ${NAME:+wandb.name="$NAME"}
    )

    # ---- train --------------------------------------------------------------------------------------------------------
    if [[ -n "${ACCELERATE_CONFIG:-}" ]]; then start=with_accelerate; fi
    "$start" "$SCORERS_ROOT/python_script/train_reward.py" "$CONFIG_PATH" "${keys[@]}" "$@"

    # ---- measure, on the first node -------------------------------------------------------------------------------------
    if ((machine > 0)); then return; fi
    if [[ -z "${HELD_OUT:-}" ]]; then
        echo "not measured: set HELD_OUT to a folder of preference sets that the model has not seen"
        return
    fi
    python "$SCORERS_ROOT/python_script/evaluation/reward_accuracy.py" model.path="$OUTPUT_DIR/final" \
        data.target_root="$HELD_OUT" ${HELD_OUT_IMAGES:+data.image_root="$HELD_OUT_IMAGES"} \
        output_dir="$OUTPUT_DIR/accuracy"
}
