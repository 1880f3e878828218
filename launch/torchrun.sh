#!/usr/bin/env bash
# Train with torchrun, which restarts all ranks when one fails. Run this on every machine, or in a Slurm job with
# `srun --ntasks-per-node=1 bash launch/torchrun.sh RECIPE`.
#
#   NODES=2 MASTER_ADDR=node0 bash launch/torchrun.sh RECIPE [--section.key value ...]
#
#   NODES=1              number of machines (default in Slurm: the job's nodes); 1:4 continues with as few as one of four
#                        machines, with --training.elastic true
#   MASTER_ADDR          address of the first machine (known in Slurm)
#   MASTER_PORT=29400    rendezvous port on the first machine
#   RANKS=8              ranks on this machine (default: its GPUs)
#   RESTARTS=3           how often to restart the ranks from the newest checkpoint
#
# Ctrl-C, SIGTERM and SIGUSR1 stop the run after the current step if every machine receives them. The exit code is 0 when
# the run is finished; torchrun's other codes do not tell a stopped run from a failed one.

# shellcheck disable=SC2317,SC2329 # stop is called by a trap
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/node_env.sh
source launch/node_env.sh

if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    : "${NODES:=$SLURM_NNODES}" "${MASTER_ADDR:=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
    : "${MASTER_PORT:=$((20000 + SLURM_JOB_ID % 10000))}"
fi
ranks=${RANKS:-$(python -c 'import torch; print(torch.cuda.device_count())')}
if [ "$ranks" = 0 ]; then fail "$(hostname): no GPUs found; for ranks on CPUs set RANKS and DS_ACCELERATOR=cpu"; fi

# Without this, restarted ranks find the addresses of the previous start.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

set -m # run the launcher in its own process group: Ctrl-C must not reach it
torchrun --nnodes "${NODES:-1}" --nproc-per-node "$ranks" --max-restarts "${RESTARTS:-3}" --rdzv-backend c10d \
    --rdzv-endpoint "${MASTER_ADDR:-127.0.0.1}:${MASTER_PORT:-29400}" \
    -m hmt_ds.train "$@" --checkpoint.resume auto </dev/null 8>&- &
launcher=$!
stop() { # end the ranks first, then torchrun, which would restart ranks that saved and exited
    local ranks
    ranks=$(pgrep -P "$launcher" -f hmt_ds.train)
    for rank in $ranks; do kill -USR1 "$rank"; done
    for rank in $ranks; do while kill -0 "$rank" 2>/dev/null; do sleep 0.1; done; done
    kill -TERM "$launcher"
}
trap stop USR1 TERM INT HUP
code=0
while kill -0 $launcher 2>/dev/null; do wait $launcher && code=0 || code=$?; done
exit $code
