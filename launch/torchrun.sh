#!/usr/bin/env bash
# Train with torchrun, which starts all ranks anew when one has failed. Run it on every machine, or inside of a Slurm
# job with `srun --ntasks-per-node=1 bash launch/torchrun.sh RECIPE`.
#
#   NODES=2 MASTER_ADDR=node0 bash launch/torchrun.sh RECIPE [--section.key value ...]
#
#   NODES=1              how many machines there are (in Slurm: those of the job); 1:4 goes on with one that is left of
#                        four, with --training.elastic true
#   MASTER_ADDR          the first of them (in Slurm: known)
#   MASTER_PORT=29400    where they meet
#   RANKS=8              on this machine (default: its GPUs)
#   RESTARTS=3           how often the ranks start anew, from the newest checkpoint
#
# Ctrl-C, SIGTERM and SIGUSR1 stop the run after the step in hand, if all machines get them. The exit code is 0 at the
# end, and not 0 else: whether a run was stopped or has failed torchrun does not tell.

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
if [ "$ranks" = 0 ]; then fail "$(hostname): no GPUs here; for ranks on CPUs set RANKS and DS_ACCELERATOR=cpu"; fi

# Else ranks that start anew find each other's addresses of the start before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

set -m # a process group of its own: Ctrl-C does not reach it
torchrun --nnodes "${NODES:-1}" --nproc-per-node "$ranks" --max-restarts "${RESTARTS:-3}" --rdzv-backend c10d \
    --rdzv-endpoint "${MASTER_ADDR:-127.0.0.1}:${MASTER_PORT:-29400}" \
    -m hmt_ds.train "$@" --checkpoint.resume auto </dev/null 8>&- &
launcher=$!
stop() { # torchrun would start ranks anew that have saved and left
    local ranks
    ranks=$(pgrep -P "$launcher" -f hmt_ds.train)
    for rank in $ranks; do kill -USR1 "$rank"; done
    for rank in $ranks; do while kill -0 "$rank" 2>/dev/null; do sleep 0.1; done; done
    kill -TERM "$launcher"
}
trap stop USR1 TERM INT
code=0
while kill -0 $launcher 2>/dev/null; do wait $launcher && code=0 || code=$?; done
exit $code
