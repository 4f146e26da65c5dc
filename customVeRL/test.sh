#!/usr/bin/env bash
# The tests of customVeRL in its own environment, which is set up if needed. Arguments go to pytest: -m "not slow" leaves out
# the run of verl's trainer. SCORERS_PYTHON is the basic environment's Python (default .venv/bin/python of the project).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export VERL_ENV="${VERL_ENV:-$PWD/.venv}" SCORERS_PYTHON="${SCORERS_PYTHON:-$(cd .. && pwd)/.venv/bin/python}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
bash env_setup.sh
"$VERL_ENV/bin/python" -m pytest "$@"
