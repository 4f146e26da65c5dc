# shellcheck shell=bash
# What the set-up scripts share: choosing or making an environment, and installing into it.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "$(basename "$0"): $*"
    exit 1
}
is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

# Candidates are tried by running them: a command of that name may be a shim with no interpreter behind it.
find_python() {
    local candidate candidates="${PYTHON:-python3.12 python3.11 python3}"
    for candidate in $candidates; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "found no Python 3.11 or 3.12 (tried: $candidates). Install one, or name it: PYTHON=/path/to/python3.12 bash $0"
}

# What the set-up left in environment $1: "basic ...", "vllm ...", "lmdeploy ..." or nothing.
stamp_of() { if [[ -f "$1/.scorers-setup" ]]; then cat "$1/.scorers-setup"; fi; }

active_environment() {
    if [[ -n "${VIRTUAL_ENV:-}" ]]; then
        echo "$VIRTUAL_ENV"
    elif [[ "${CONDA_DEFAULT_ENV:-}" != base ]]; then
        echo "${CONDA_PREFIX:-}"
    fi
}

# Makes the environment $1 unless a working one is there.
make_environment() {
    if ! is_supported "$1/bin/python"; then
        local python
        python="$(find_python)"
        say "Making $1 with $python"
        "$python" -m venv --clear "$1"
    fi
}

require_supported() {
    is_supported "$1/bin/python" ||
        fail "the active environment $1 has no Python 3.11 or 3.12. Deactivate it (then one is made in the project folder), or activate another."
}

pip_install() {
    PYTHONUNBUFFERED=1 "$1/bin/python" -m pip install --disable-pip-version-check --root-user-action=ignore --progress-bar off "${@:2}"
}

# Turns what pip prints (standard input) into a line per 25 packages.
show_progress() {
    awk '/^(Collecting|Requirement already satisfied)/ && ++n % 25 == 0 { print "  " n " packages looked up"; fflush() }
         /^Installing collected packages/ { print "  unpacking ... (up to two minutes)"; fflush() }' >&2
}

# pip's last words from the log $1, without its remarks on mirrors that lack a package.
show_failure() { grep -v '^WARNING' "$1" | tail -n 15 >&2; }

# pyproject.toml's dependencies, one a line, without those of training and the web page; $1 is an environment.
scoring_requirements() {
    "$1/bin/python" - "$root/pyproject.toml" <<'PY'
import re
import sys
import tomllib

skipped = {"gradio", "deepspeed", "trl", "wandb", "tensorboard"}
with open(sys.argv[1], "rb") as file:
    requirements = tomllib.load(file)["project"]["dependencies"]
print("\n".join(line for line in requirements if re.match(r"[\w.-]+", line).group() not in skipped))
PY
}

# install_engine ENGINE REQUIREMENT...: the engine, with ScoreRS and what scoring and evaluation need, in the active
# environment if it is empty or was made for this engine, else in .venv-ENGINE. explain_failure is the caller's.
install_engine() {
    local engine="$1" environment log wanted
    local -a requirements
    environment="$(active_environment)"
    if [[ -n "$environment" && "$(stamp_of "$environment")" =~ ^($engine |$) ]]; then
        require_supported "$environment"
    else
        environment="$root/.venv-$engine"
        make_environment "$environment"
    fi

    wanted="$engine $(cat "$0" "$root/pyproject.toml" <(echo "$root") | sha256sum | cut -c1-64)"
    if [[ "$(stamp_of "$environment")" != "$wanted" ]]; then
        log="$environment/.scorers-setup.log"
        mapfile -t requirements < <(scoring_requirements "$environment")
        say "Installing $2 into $environment (a first run takes 5 to 10 minutes) ..."
        pip_install "$environment" --no-compile "${@:2}" setuptools "${requirements[@]}" 2>&1 |
            tee "$log" | show_progress || explain_failure "$log"
        pip_install "$environment" --no-deps -e "$root" >>"$log" 2>&1 || explain_failure "$log"
        echo "$wanted" >"$environment/.scorers-setup"
    fi

    # Read, not imported: importing an engine looks for a GPU.
    "$environment/bin/python" - "$engine" <<'PY'
import sys
from importlib.metadata import version

for name in (sys.argv[1], "torch", "torchvision", "transformers", "scorers"):
    print(f"  {name:<12}  {version(name)}")
PY
    echo "Activate it with: source $environment/bin/activate"
}
