#!/usr/bin/env bash
# Train on the machines of a hostfile with Open MPI.
#
#   bash launch/mpi.sh [--deepspeed] RECIPE [--section.key value ...]
#
#   --deepspeed          through `deepspeed --launcher openmpi`, which calls mpirun in turn
#   HOSTFILE=hostfile    a line `NAME slots=8` for each machine
#   MASTER_PORT=29500    where the ranks meet on the first machine (default: any free port)
#   RESTARTS=0           how often to restart failed ranks from the newest checkpoint
#
# Ctrl-C, SIGTERM and SIGUSR1 stop the run after the current step. Exit codes: 0 finished; 75 stopped and saved; 2 an
# error in the recipe or the hostfile. `mpirun ... python -m hmt_ds.train RECIPE` with any MPI works without this script:
# ranks read their number from mpirun's variables and agree on an address through mpi4py. It skips the machine checks.

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

# MPI only starts the ranks, which communicate through NCCL or gloo, so one interface is enough for MPI.
arguments=()
if [ -n "${GLOO_SOCKET_IFNAME:-}" ]; then arguments+=(--mca btl_tcp_if_include "$GLOO_SOCKET_IFNAME"); fi
if [ "$(id -u)" = 0 ]; then arguments+=(--allow-run-as-root); fi

tell_ranks() { # mpirun forwards USR1 to all ranks; on TERM it kills them
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
