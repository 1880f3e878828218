#!/usr/bin/env bash
# A first run: install what is missing, then train a small HMT on a novel. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

usage() {
    cat <<'TEXT'
usage: bash launch/quickstart.sh [--ranks N] [--section.key value ...]

Makes .venv, installs the tested versions into it, trains a tokenizer, and trains launch/recipes/quickstart.yaml:
on as many ranks as there are GPUs, or on two ranks on the CPU. Only what is missing is done.

  --ranks N               processes to start
  --training.steps 200    any key of the recipe; `.venv/bin/hmt-ds keys` lists them

The run goes to runs/quickstart, or to the next free of runs/quickstart-2, -3 and so on, unless --training.output
names a folder. With --checkpoint.resume auto the newest of these runs goes on. Paths are relative to the project.
PYTHON=python3.11 chooses the Python that .venv is made with.
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
if ! [ -f $tokenizer/tokenizer_config.json ]; then # the file that is written last
    say "Training a tokenizer on Pride and Prejudice ($tokenizer)"
    .venv/bin/python -m hmt_ds.cli tokenizer hmt_ds/data/samples/prideprejudice.txt \
        --vocab-size 4096 --output $tokenizer
fi

arguments=("$@")
if ! $output_given; then
    output=runs/quickstart
    if $resume; then
        newest=$(printf '%s\n' runs/quickstart runs/quickstart-[0-9]* | sort -V | tail -n 1)
        if [ -d "$newest" ]; then output=$newest; fi # else the pattern itself: no such folder
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
