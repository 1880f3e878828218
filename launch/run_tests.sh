#!/usr/bin/env bash
# The tests: bash launch/run_tests.sh [--all] [pytest's arguments].
# --all adds the slow ones, but none that need a GPU or a cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

arguments=()
for word in "$@"; do
    case $word in
        --all) arguments+=(-m "not cluster and not gpu") ;;
        *) arguments+=("$word") ;;
    esac
done

setup_env

export OMP_NUM_THREADS=1 # tests start several ranks, and each would take all cores
# What DeepSpeed compiles for this .venv's torch. A killed build leaves a lock that the next one waits for without end:
# whoever holds the folder, no other test run does, and any lock in it is stale.
export TORCH_EXTENSIONS_DIR=$PWD/.venv/torch_extensions
mkdir -p "$TORCH_EXTENSIONS_DIR"
exec 9<"$TORCH_EXTENSIONS_DIR"
if ! command -v flock >/dev/null || flock -n 9; then
    rm -f "$TORCH_EXTENSIONS_DIR"/*/lock
fi

say "Testing"
exec .venv/bin/python -m pytest "${arguments[@]}"
