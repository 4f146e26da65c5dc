#!/usr/bin/env bash
# The whole chain on a fresh machine: sets up, makes 1,000 scenes of which half have a corrupted caption, scores them with
# the embedded model, keeps the best 30 %, and leaves a report to look at. Two CPU cores do; set-up takes 2 to 5 minutes
# the first time and downloads about 3 GB, the rest takes about a minute.
#
#   bash script/quickstart.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

OUTPUT="${OUTPUT:-$SCORERS_ROOT/output/quickstart}"

# ---- 1. data: made scenes with one caption each, half of them wrong or useless --------------------------------------
python "$SCORERS_ROOT/python_script/make_scenes.py" --output "$OUTPUT/scenes" --count 1000 --seed 9 --corrupt 0.5

# ---- 2. score every pair (afresh: a demonstration, where score_dataset.py would go on with what is there) ------------
rm -rf "$OUTPUT/scores" "$OUTPUT/manifest.json" "$OUTPUT/summary.json"
python "$SCORERS_ROOT/python_script/score_dataset.py" "$SCORERS_ROOT/config/score_dataset.yaml" \
    data.path="$OUTPUT/scenes/scenes.csv" data.source_column=scene output_dir="$OUTPUT"

# ---- 3. keep the best 30 % ------------------------------------------------------------------------------------------
python "$SCORERS_ROOT/python_script/select_subset.py" scores_dir="$OUTPUT" fraction=0.3

# ---- 4. what was kept, by kind of corruption ------------------------------------------------------------------------
echo
python "$SCORERS_ROOT/python_script/tally_subset.py" "$OUTPUT" --column corruption --good clean
echo
echo "Open in a browser: $OUTPUT/report.html"
