#!/usr/bin/env bash
# Train on this machine, on all of its GPUs: the deepspeed launcher, through `hmt-ds train`.
#
#   bash launch/local.sh RECIPE [--ranks N] [--section.key value ...]
#
# Ctrl-C, SIGTERM and SIGUSR1 stop the run after the step in hand; with --checkpoint.resume auto it goes on. Exit codes:
# 0 the run is at its end; 75 stopped and saved; 2 something is wrong with the recipe; else it failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/node_env.sh
source launch/node_env.sh

exec python -m hmt_ds.cli train "$@"
