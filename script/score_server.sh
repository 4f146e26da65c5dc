# shellcheck shell=bash
# Sourced by scripts that reinforce: a score server for as long as they run. SCORER_PATH is its score model (default
# assets/nano/scorer).
set -euo pipefail

# start_score_server ROOT COMMAND...: sets REWARD_URL to a server on a free port, which ends with the script. COMMAND runs Python in
# place of the shell that calls it, so that the server itself is what is ended.
start_score_server() {
    local root="$1" port
    shift
    port="$("$@" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    ("$@" "$root/python_script/serve_reward.py" model.path="${SCORER_PATH:-$root/assets/nano/scorer}" port="$port") &
    server=$!
    trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
    until (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        kill -0 "$server" 2>/dev/null || { echo "the score server has ended" >&2; exit 1; }
        sleep 0.2
    done
    export REWARD_URL="http://127.0.0.1:$port"
}
