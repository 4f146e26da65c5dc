#!/usr/bin/env bash
# Installs the environment of veRL beside the basic one. See --help.
set -euo pipefail

verl_root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$verl_root/.." && pwd)"
lock="$verl_root/requirements.lock"
source "$root/script/setup_lib.sh"

usage() {
    cat <<'HELP'
usage: bash customVeRL/env_setup.sh [--help]

Installs verl 0.9.1, the exact versions of customVeRL/requirements.lock, this package and ScoreRS into an environment of
its own, made with python3.12 or python3.11, whichever is there. verl wants transformers below 5.11, and ends with TRL 1.x
in reach, so that it cannot share the basic environment. Run it as often as you like: when nothing has changed, nothing
is installed. A first run downloads about 3 GB and needs 7 GB of disk.

  VERL_ENV=/path/to/environment  default customVeRL/.venv
  PYTHON=/path/to/python3.12     the interpreter that makes it

For GPUs, pip install 'verl[vllm]==0.9.1' into an environment of its own brings vLLM 0.24 and its versions of PyTorch.
HELP
}

main() {
    local environment="${VERL_ENV:-$verl_root/.venv}" wanted log
    make_environment "$environment"
    wanted="verl $(cat "$lock" "$verl_root/pyproject.toml" <(echo "$root") | sha256sum | cut -c1-64)"
    if [[ "$(stamp_of "$environment")" != "$wanted" ]]; then
        log="$environment/.scorers-setup.log"
        say "Installing $(grep -c '^[^#]' "$lock") packages into $environment (a first run takes some minutes) ..."
        if ! pip_install "$environment" --no-deps --no-compile -r "$lock" 2>&1 | tee "$log" | show_progress ||
            ! pip_install "$environment" --no-deps --no-build-isolation -e "$root" -e "$verl_root" >>"$log" 2>&1; then
            show_failure "$log"
            fail "pip failed; its last lines are above, all of them in $log"
        fi
        echo "$wanted" >"$environment/.scorers-setup"
    fi
    "$environment/bin/python" - <<'PY'
from importlib.metadata import version

for name in ("verl", "ray", "torch", "torchvision", "transformers", "scorers-verl"):
    print(f"  {name:<12}  {version(name)}")
PY
    echo "Activate it with: source $environment/bin/activate"
}

case "${1:-}" in
    --help | -h) usage ;;
    "") main ;;
    *)
        usage >&2
        fail "unknown argument '$1'"
        ;;
esac
