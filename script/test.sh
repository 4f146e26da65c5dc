#!/usr/bin/env bash
# Everything that CI runs: lint, format, types, tests. Arguments go to pytest:  bash script/test.sh -m "not slow" -x
# customVeRL is tested in an environment of its own (3 GB, made on the first run); SKIP_VERL=1 leaves it out.
set -euo pipefail
started=$SECONDS
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$SCORERS_ROOT"

current="set-up"
finish() {
    local code=$?
    ((code == 0)) && printf '\nAll green in %d s\n' $((SECONDS - started)) ||
        printf '\n%s failed (exit code %d) after %d s\n' "$current" "$code" $((SECONDS - started)) >&2
    exit "$code"
}
trap finish EXIT

step() {
    current="$*"
    printf '\n== %s\n' "$current"
    "$@"
}

step ruff check .
step ruff format --check .
step mypy
# Two processes by default, a file of tests at a time; most tests wait for programs that they start.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
step pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
if [[ -z "${SKIP_VERL:-}" ]]; then
    SCORERS_PYTHON="$SCORERS_ENV/bin/python" step bash customVeRL/test.sh
fi
