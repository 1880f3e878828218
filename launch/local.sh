#!/usr/bin/env bash
# Train on all GPUs of this machine with the deepspeed launcher, through `hmt-ds train`.
#
#   bash launch/local.sh RECIPE [--ranks N] [--section.key value ...]
#
# Ctrl-C, SIGTERM and SIGUSR1 stop the run after the current step; resume it with --checkpoint.resume auto. Exit codes:
# 0 finished; 75 stopped and saved; 2 an error in the recipe; any other code is a failure.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/node_env.sh
source launch/node_env.sh

# Paths are relative to the project, or to the caller's folder if only that has the recipe.
if [ ! -e "$1" ] && [ -e "$caller/$1" ]; then cd "$caller"; fi
exec python -m hmt_ds.cli train "$@"
