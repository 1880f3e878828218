#!/usr/bin/env bash
# Train on the machines of a hostfile: the deepspeed launcher starts the ranks by ssh, through pdsh.
#
#   bash launch/hostfile.sh RECIPE [--section.key value ...]
#
#   HOSTFILE=hostfile    a line `NAME slots=8` for each machine
#   MASTER_PORT=29500    where the ranks meet on the first machine (default: any free port)
#   RESTARTS=0           how often the ranks start anew when they have failed, from the newest checkpoint
#
# The project, its .venv and the run's folder are at the same path on all machines. Ctrl-C, SIGTERM and SIGUSR1 stop the
# run after the step in hand. Exit codes: 0 at the end; 75 stopped and saved; 2 a mistake in the recipe or the hostfile.

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

# Signals do not travel through ssh: find the launcher's part on each machine, and signal the ranks, its children.
tell_ranks() {
    local part="^[^ ]*python[^ ]* -u -m deepspeed.launcher.launch .*--master_addr=$MASTER_ADDR"
    part+=" --master_port=$MASTER_PORT "
    PDSH_RCMD_TYPE=ssh pdsh -w "$HMT_DS_HOSTS" "pkill -$1 -P \$(pgrep -d, -f '$part')" 2>/dev/null || true
}

# pdsh waits for all machines. When one of them is lost or its ranks have failed, the others may wait for it for ever.
launch() {
    local code=0
    deepspeed --hostfile "$hostfile" --force_multi --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
        --log_level error --no_local_rank --module hmt_ds.train "$@" 2> >(
        while IFS= read -r line; do
            printf '%s\n' "$line" >&2
            case $line in pdsh@*"exited with exit code"*) sleep 5 && tell_ranks KILL ;; esac
        done
    ) || code=$?
    [ -s "$HMT_DS_EXIT_CODE_FILE" ] || tell_ranks KILL # what a killed pdsh has left
    return "$code"
}

# pdsh replaces %n and the like, and a shell on each machine reads the words. DeepSpeed puts those with blanks, and no
# others, in double quotes, and escapes nothing but such quotes in them.
words=()
for word in "$@"; do
    case $word in
        *" "*) word=$(printf %s "$word" | sed 's/[\\$`]/\\&/g') ;;
        *) printf -v word %q "$word" ;;
    esac
    words+=("${word//%/%%}")
done
run_launcher launch "${words[@]}"
