#!/usr/bin/env bash
# Train with torchrun, which starts all ranks anew when one has failed. Run it on every machine, or inside of a Slurm
# job with `srun --ntasks-per-node=1 bash launch/torchrun.sh RECIPE`.
#
#   NODES=2 MASTER_ADDR=node0 bash launch/torchrun.sh RECIPE [--section.key value ...]
#
#   NODES=1              how many machines there are (in Slurm: those of the job)
#   MASTER_ADDR          the first of them (in Slurm: known)
#   MASTER_PORT=29400    where they meet
#   RANKS=8              on this machine (default: its GPUs)
#   RESTARTS=3           how often the ranks start anew, from the newest checkpoint
#
# Ctrl-C, SIGTERM and SIGUSR1 stop the run if all machines get them; torchrun gives ranks 30 seconds to save. Its exit
# code is 0 at the end, and not 0 else: whether a run was stopped or has failed it does not tell.
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

set -m # a process group of its own: Ctrl-C does not reach it
torchrun --nnodes "${NODES:-1}" --nproc-per-node "$ranks" --max-restarts "${RESTARTS:-3}" --rdzv-backend c10d \
    --rdzv-endpoint "${MASTER_ADDR:-127.0.0.1}:${MASTER_PORT:-29400}" \
    -m hmt_ds.train "$@" --checkpoint.resume auto </dev/null 8>&- &
launcher=$!
trap 'kill -TERM $launcher' USR1 TERM INT
code=0
while kill -0 $launcher 2>/dev/null; do wait $launcher && code=0 || code=$?; done
exit $code
