#!/usr/bin/env bash
# Installs the basic environment of ScoreRS. See --help.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
lock="$root/requirements.lock"
source "$root/script/setup_lib.sh"

usage() {
    cat <<'HELP'
usage: bash basic_env_setup.sh [--path | --help]

Installs ScoreRS and the exact versions of requirements.lock
  - into the active virtual environment or conda environment (conda's `base` is left alone), else
  - into .venv in the project folder, made with python3.12 or python3.11, whichever is there.
Then imports the stack and prints its versions. Run it as often as you like: when nothing has
changed, nothing is installed. A first run downloads about 3 GB and needs 7 GB of disk.

  --path    set up if needed, then print nothing but the environment's folder
  --help    this text

  PYTHON=/path/to/python3.12    the interpreter that makes .venv

The same packages run on a GPU and on the CPU. FlashAttention 2 is optional (attention is SDPA without
it); with a GPU and its compiler at hand:  pip install flash-attn --no-build-isolation
HELP
}

# Imports the stack and prints its versions. Writes byte code even where that is switched off, as in many containers.
show_versions() { env -u PYTHONDONTWRITEBYTECODE "$1/bin/python" "$root/python_script/show_versions.py"; }

install() {
    local log="$1/.scorers-setup.log"
    say "Installing $(grep -c '^[^#]' "$lock") packages into $1 (a first run takes 2 to 5 minutes) ..."
    # The lock is complete, so nothing needs resolving. Byte code comes with the first import, only for what is used:
    # for all of the 19,000 modules it would take a minute more.
    if ! pip_install "$1" --no-deps --no-compile -r "$lock" 2>&1 | tee "$log" | show_progress ||
        ! pip_install "$1" --no-deps --no-build-isolation -e "$root" >>"$log" 2>&1; then
        show_failure "$log"
        fail "pip failed; its last lines are above, all of them in $log"
    fi
}

main() {
    local environment wanted shown=""
    environment="$(active_environment)"
    if [[ -n "$environment" ]]; then
        require_supported "$environment"
    else
        environment="$root/.venv"
        make_environment "$environment"
    fi

    wanted="basic $(cat "$lock" "$root/pyproject.toml" <(echo "$root") | sha256sum | cut -c1-64)"
    if [[ "$(stamp_of "$environment")" =~ ^(vllm|lmdeploy)\  ]]; then
        say "$environment was made by ${BASH_REMATCH[1]}_env_setup.sh: left as it is"
        shown=yes
    elif [[ "$(stamp_of "$environment")" != "$wanted" ]]; then
        rm -f "$environment/.scorers-setup"
        install "$environment"
        say "Importing the stack for the first time (about 20 seconds) ..."
        show_versions "$environment" >&2
        shown=yes
        echo "$wanted" >"$environment/.scorers-setup"
    fi

    if [[ "${1:-}" == --path ]]; then
        echo "$environment"
    else
        [[ -n "$shown" ]] || show_versions "$environment"
        [[ -n "$(active_environment)" ]] || echo "Activate it with: source $environment/bin/activate"
    fi
}

case "${1:-}" in
    --help | -h) usage ;;
    "" | --path) main "$@" ;;
    *)
        usage >&2
        fail "unknown argument '$1'"
        ;;
esac
