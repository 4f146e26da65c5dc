#!/usr/bin/env bash
# Does curation pay? Parts captioned images in two halves, trains on one what judges pairs (a score model and a CLIP),
# damages captions of the other, cuts it by several rules, and trains one and the same CLIP on each part.
# About three hours on two CPU cores; a rerun goes on where it stopped, within a training from its last checkpoint.
#
# Settings from the environment:
#   CAPTIONED, TEST   captioned images with the columns image, captions, label and filename; TEST held out (both needed)
#   VAL               the same, on which the score model is watched (default: TEST, whose figures it then never uses)
#   OUTPUT_DIR        default output/curation_experiment: halves, models, score tables, a file per training, results
#   SCENES            made scenes that models begin with (default 12000)
#   SCORER_STEPS      of the score model's three parts (default "800 300 1000")
#   CLIP_STEPS        of the CLIP on scenes, and then on captions of the first half for the CLIP score (default "400 500")
# Arguments are keys of config/nano/curation_experiment.yaml (key=value); output_dir=FOLDER stands for OUTPUT_DIR.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

out="${OUTPUT_DIR:-output/curation_experiment}"
for argument in "$@"; do
    case "$argument" in output_dir=*) out="${argument#*=}" ;; esac
done
programs="$SCORERS_ROOT/python_script" nano="$SCORERS_ROOT/config/nano"
keys=(data.captioned="${CAPTIONED:?a captioned data set}" data.test="${TEST:?the same, held out}" "$@" output_dir="$out")
scenes="${SCENES:-12000}"
read -r grounding contrastive matching <<< "${SCORER_STEPS:-800 300 1000}"
read -r on_scenes on_captions <<< "${CLIP_STEPS:-400 500}"

# ---- halves -----------------------------------------------------------------------------------------------------------
python "$programs/curation_experiment.py" "${keys[@]}" prepare_only=true

# ---- score model ------------------------------------------------------------------------------------------------------
# metrics.json is what each training writes last: a model without it may be half written.
if [[ ! -f "$out/scorer/metrics.json" ]]; then
    python "$programs/train_nano_base.py" data.train="$out/learn.parquet" data.val="${VAL:-$TEST}" data.scenes="$scenes" \
        grounding.steps="$grounding" contrastive.steps="$contrastive" contrastive.real_share=0.85 \
        matching.steps="$matching" matching.real_share=0.8 output_dir="$out/scorer" resume=true
fi

# ---- CLIP: where every arm starts, and what gives the CLIP score ------------------------------------------------------
shape=(--side 96 --width 128 --image-layers 4 --text-layers 2)
clip=("$programs/train_clip.py" "$nano/clip_training.yaml" run_strategy=step device_train_batch_size=128
    optimizer.learning_rate=1e-3 checkpoint.save_strategy=step checkpoint.save_interval=50 data.cache_dir="$out/cache"
    load_path=last)
if [[ ! -f "$out/clip_scenes/metrics.json" ]]; then
    # The start's tokeniser knows words of captions, but it is trained on scenes alone.
    python "$programs/make_nano_clip.py" --output "$out/clip_start" --scenes "$scenes" --captions "$out/learn.parquet" \
        "${shape[@]}"
    python "$programs/make_nano_clip.py" --output "$out/clip_start/scenes" --scenes "$scenes" "${shape[@]}"
    python "${clip[@]}" model.model_name="$out/clip_start/start" run_duration="$on_scenes" \
        data.csv_path="$out/clip_start/scenes/pairs.parquet" save_folder="$out/clip_scenes"
fi
if [[ ! -f "$out/clip_learn/metrics.json" ]]; then
    python "${clip[@]}" model.model_name="$out/clip_scenes/final" run_duration="$on_captions" \
        data.csv_path="$out/learn.parquet" save_folder="$out/clip_learn"
fi

# ---- parts, trainings and figures -------------------------------------------------------------------------------------
python "$programs/curation_experiment.py" "${keys[@]}"
