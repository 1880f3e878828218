#!/usr/bin/env bash
# Train on the machines of a hostfile: the deepspeed launcher starts the ranks by ssh, through pdsh.
#
#   bash launch/hostfile.sh RECIPE [--section.key value ...]
#
#   HOSTFILE=hostfile    a line `NAME slots=8` for each machine
#   MASTER_PORT=29500    where the ranks meet on the first machine (default: any free port)
#   RESTARTS=0           how often to restart failed ranks from the newest checkpoint
#
# The project, its .venv and the run's folder must be at the same path on all machines. Ctrl-C, SIGTERM and SIGUSR1 stop
# the run after the current step. Exit codes: 0 finished; 75 stopped and saved; 2 an error in the recipe or the hostfile.

# shellcheck disable=SC2317,SC2329 # functions that run_launcher calls
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/node_env.sh
source launch/node_env.sh
hostfile=${HOSTFILE:-hostfile}

settings=$(python -m hmt_ds.launch.check hostfile "$hostfile") || exit 2
eval "$settings" # HMT_DS_HOSTS, MASTER_ADDR, MASTER_PORT, the network's interface
make_work runs
write_deepspeed_env "$work/env"

# ssh does not forward signals: find the launcher's process on each machine and signal its children, the ranks.
tell_ranks() {
    local part="^[^ ]*python[^ ]* -u -m deepspeed.launcher.launch .*--master_addr=$MASTER_ADDR"
    part+=" --master_port=$MASTER_PORT "
    PDSH_RCMD_TYPE=ssh pdsh -w "$HMT_DS_HOSTS" "pkill -$1 -P \$(pgrep -d, -f '$part')" 2>/dev/null || true
}

# pdsh waits for all machines. If one is lost or its ranks failed, the ranks of the others may wait for it forever: when
# pdsh reports a failed machine, kill the ranks on all of them.
launch() {
    local code=0
    deepspeed --hostfile "$hostfile" --force_multi --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
        --log_level error --no_local_rank --module hmt_ds.train "$@" 2> >(
        while IFS= read -r line; do
            printf '%s\n' "$line" >&2
            case $line in pdsh@*"exited with exit code"*) sleep 5 && tell_ranks KILL ;; esac
        done
    ) || code=$?
    [ -s "$HMT_DS_EXIT_CODE_FILE" ] || tell_ranks KILL # ranks that a killed pdsh left behind
    return "$code"
}

# Arguments pass through pdsh, which expands %n and the like, and through a shell on each machine. DeepSpeed puts double
# quotes around arguments with spaces and escapes nothing else in them, so escape both kinds here.
words=()
for word in "$@"; do
    case $word in
        *" "*) word=$(printf %s "$word" | sed 's/[\\$`]/\\&/g') ;;
        *) printf -v word %q "$word" ;;
    esac
    words+=("${word//%/%%}")
done
run_launcher launch "${words[@]}"
