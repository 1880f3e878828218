#!/usr/bin/env bash
# Train on the machines of a hostfile with Open MPI.
#
#   bash launch/mpi.sh [--deepspeed] RECIPE [--section.key value ...]
#
#   --deepspeed          through `deepspeed --launcher openmpi`, which calls mpirun in turn
#   HOSTFILE=hostfile    a line `NAME slots=8` for each machine
#   MASTER_PORT=29500    where the ranks meet on the first machine (default: any free port)
#   RESTARTS=0           how often the ranks start anew when they have failed, from the newest checkpoint
#
# Ctrl-C, SIGTERM and SIGUSR1 stop the run after the step in hand. Exit codes: 0 at the end; 75 stopped and saved; 2 a
# mistake in the recipe or the hostfile. Without this script, `mpirun ... python -m hmt_ds.train RECIPE` (any MPI) does
# too: ranks find their number in mpirun's variables, and by mpi4py where they meet; but nothing is asked beforehand.

# shellcheck disable=SC2317,SC2329 # functions that run_launcher calls
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/node_env.sh
source launch/node_env.sh
hostfile=${HOSTFILE:-hostfile} way=mpirun
if [ "$1" = --deepspeed ]; then way=deepspeed && shift; fi

settings=$(python -m hmt_ds.launch.check hostfile "$hostfile") || exit 2
eval "$settings" # HMT_DS_RANKS, MASTER_ADDR, MASTER_PORT, the network's interface
make_work runs
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# MPI itself only starts the ranks, which then talk through NCCL or gloo: one interface is enough for it.
arguments=()
if [ -n "${GLOO_SOCKET_IFNAME:-}" ]; then arguments+=(--mca btl_tcp_if_include "$GLOO_SOCKET_IFNAME"); fi
if [ "$(id -u)" = 0 ]; then arguments+=(--allow-run-as-root); fi

tell_ranks() { # mpirun hands USR1 to all ranks; told TERM it kills them
    local number=${1/KILL/TERM}
    if [ "$way" = mpirun ]; then kill "-$number" "$2"; else pkill "-$number" -P "$2" mpirun; fi
}

if [ "$way" = mpirun ]; then
    for name in $(passed_on); do arguments+=(-x "$name"); done
    run_launcher mpirun -np "$HMT_DS_RANKS" --hostfile "$hostfile" --bind-to none "${arguments[@]}" \
        "$VENV/bin/python" -u -m hmt_ds.train "$@"
fi
write_deepspeed_env "$work/env"
run_launcher deepspeed --hostfile "$hostfile" --launcher openmpi "--launcher_args=--bind-to none ${arguments[*]}" \
    --force_multi --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --log_level error \
    --no_local_rank --module hmt_ds.train "$@"
