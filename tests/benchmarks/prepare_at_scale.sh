#!/usr/bin/env bash
# Measure `hmt-ds prepare` on 2 GB of text in 20,000 documents and on 500 MB in one, with prepare_data.py:
#
#     tests/benchmarks/prepare_at_scale.sh FOLDER [PERCENT]
#
# On two free cores about 45 minutes, and 12 GB of disk in FOLDER. PERCENT scales the text, 100 by default; 1 is a try.
# The figures are printed, and kept in FOLDER/figures.txt; those of DATA.md are from here.
set -euo pipefail
folder=${1:?usage: prepare_at_scale.sh FOLDER [PERCENT]} percent=${2:-100}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}"
cd "$here/../.."
mkdir -p "$folder"
needed=$((12 * percent / 100 + 1)) free=$(($(df --output=avail -BG "$folder" | tail -1 | tr -dc 0-9)))
((free >= needed)) || { echo "$folder has $free GB free, and $needed GB are needed" >&2 && exit 1; }

measure() {
    echo "--- $* (load $(cut -d' ' -f1 /proc/loadavg), $(env -u OMP_NUM_THREADS nproc) cores)"
    python "$here/prepare_data.py" "$folder" "$@"
}

many=(--mb $((20 * percent)) --documents $((200 * percent)))
{
    for processes in 1 2; do
        measure "${many[@]}" --processes $processes
    done
    measure --mb $((5 * percent)) --documents 1 --suffix txt --processes 2 --threads false
    measure "${many[@]}" --processes 2 --kill-after $((3 * percent + 15))
} 2>&1 | tee "$folder/figures.txt"
