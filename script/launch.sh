# shellcheck shell=bash
# Sourced by scripts that train: how a program is started on several devices or machines. Settings from the environment:
#   ACCELERATE_CONFIG launch file, such as config/accelerate/ddp.yaml
#   NUM_PROCESSES     processes
#   NUM_MACHINES, MACHINE_RANK, MAIN_PROCESS_IP   for several nodes: run the script on each, with its rank from 0
set -euo pipefail

# with_accelerate PROGRAM ARGUMENT...: by the launch file.
with_accelerate() {
    accelerate launch --config_file "$ACCELERATE_CONFIG" ${NUM_PROCESSES:+--num_processes "$NUM_PROCESSES"} \
        ${NUM_MACHINES:+--num_machines "$NUM_MACHINES" --machine_rank "${MACHINE_RANK:-0}" --main_process_ip "$MAIN_PROCESS_IP"} \
        "$@"
}

# launch PROGRAM ARGUMENT...: by the launch file if there is one, else in NUM_PROCESSES processes, one per GPU by default.
launch() {
    local processes
    if [[ -n "${ACCELERATE_CONFIG:-}" ]]; then
        with_accelerate "$@"
        return
    fi
    processes="${NUM_PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
    if ((processes > 1)); then
        torchrun --standalone --nproc_per_node "$processes" "$@"
    else
        python "$@"
    fi
}
