#!/usr/bin/env bash
# First run: install missing packages, then train a small HMT on a novel. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

usage() {
    cat <<'TEXT'
usage: bash launch/quickstart.sh [--ranks N] [--section.key value ...]

Creates .venv with the tested versions, trains a tokenizer, and trains launch/recipes/quickstart.yaml on all GPUs, or
on two CPU ranks. Steps that are already done are skipped.

  --ranks N               processes to start
  --training.steps 200    override any key of the recipe; `.venv/bin/hmt-ds keys` lists them

The run is written to runs/quickstart, or to the first free one of runs/quickstart-2, -3 and so on, unless
--training.output names a folder. --checkpoint.resume auto resumes the newest of these runs. Paths are relative to the
project. PYTHON=python3.11 selects the Python that creates .venv.
TEXT
}

output_given=false resume=false
previous=
for word in "$@"; do
    case $word in
        -h | --help) usage && exit ;;
        --training.output | --training.output=*) output_given=true ;;
        --checkpoint.resume=auto) resume=true ;;
        auto) if [ "$previous" = --checkpoint.resume ]; then resume=true; fi ;;
    esac
    previous=$word
done

setup_env

tokenizer=runs/quickstart-tokenizer
if ! [ -f $tokenizer/tokenizer_config.json ]; then # the last file that is written
    say "Training a tokenizer on Pride and Prejudice ($tokenizer)"
    .venv/bin/python -m hmt_ds.cli tokenizer hmt_ds/data/samples/prideprejudice.txt \
        --vocab-size 4096 --output $tokenizer
fi

arguments=("$@")
if ! $output_given; then
    output=runs/quickstart
    if $resume; then
        newest=$(printf '%s\n' runs/quickstart runs/quickstart-[0-9]* | sort -V | tail -n 1)
        if [ -d "$newest" ]; then output=$newest; fi # if there is none, $newest is the pattern itself
    else
        number=1
        while [ -n "$(ls -A "$output" 2>/dev/null)" ]; do
            number=$((number + 1))
            output=runs/quickstart-$number
        done
    fi
    arguments+=(--training.output "$output")
fi

ranks=$(.venv/bin/python -c 'import torch; print(torch.cuda.device_count() or 2)')
say "Training launch/recipes/quickstart.yaml${output:+ into $output}"
exec .venv/bin/python -m hmt_ds.cli train launch/recipes/quickstart.yaml --ranks "$ranks" "${arguments[@]}"
