#!/usr/bin/env bash
# Run the tests: bash launch/run_tests.sh [--all] [pytest arguments]
# --all adds the slow tests, but none that need a GPU or a cluster.
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

export OMP_NUM_THREADS=1 # tests start several ranks; each would otherwise use all cores
# DeepSpeed's compiled extensions for this .venv's torch. A killed build leaves a lock file that the next build waits
# for, forever. While this run holds the folder's lock no other test run is in it, so any lock file there is stale.
export TORCH_EXTENSIONS_DIR=$PWD/.venv/torch_extensions
mkdir -p "$TORCH_EXTENSIONS_DIR"
exec 9<"$TORCH_EXTENSIONS_DIR"
if ! command -v flock >/dev/null || flock -n 9; then
    rm -f "$TORCH_EXTENSIONS_DIR"/*/lock
fi

say "Testing"
# Two processes, a file at a time and in order: the files that start ranks take longest and come first. `-n 0`: one.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${arguments[@]}"
