#!/usr/bin/env bash
# Scores a data set and keeps its best part. Hardware: anything; with no arguments, about a minute on two cores.
#
#   bash script/score_dataset.sh                                        # 1,000 made scenes, embedded model
#   bash script/score_dataset.sh data.path=captions.csv output_dir=output/mine
#   FRACTION=0.5 MODEL=PumpkinCat/ScoreRS bash script/score_dataset.sh data.path=... model.dtype=bfloat16
#   CONFIG=mine.yaml OUTPUT_DIR=output/mine bash script/score_dataset.sh   # what mine.yaml says, but for output_dir
#
# Any key of config/score_dataset.yaml is an argument. Run it again to go on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

FRACTION="${FRACTION:-0.3}"
OUTPUT_DIR="${OUTPUT_DIR:-output/score_dataset}"
SCENES="output/scenes"

data_given="${CONFIG:+yes}"
for argument in "$@"; do
    case "$argument" in
        output_dir=*) OUTPUT_DIR="${argument#*=}" ;;
        data.path=*) data_given=yes ;;
    esac
done

# ---- data: made scenes, if no other was named -----------------------------------------------------------------------
if [[ -z "$data_given" && ! -f "$SCENES/scenes.csv" ]]; then
    python "$SCORERS_ROOT/python_script/make_scenes.py" --output "$SCENES" --count 1000 --seed 9 --corrupt 0.5
fi

CONFIG="${CONFIG:-$SCORERS_ROOT/config/score_dataset.yaml}"
# ---- score, then keep the best part ---------------------------------------------------------------------------------
python "$SCORERS_ROOT/python_script/score_dataset.py" "$CONFIG" ${MODEL:+model.path="$MODEL"} output_dir="$OUTPUT_DIR" "$@"
python "$SCORERS_ROOT/python_script/select_subset.py" scores_dir="$OUTPUT_DIR" fraction="$FRACTION"
