#!/usr/bin/env bash
# First run: install missing packages, then train a small HMT and the same model without memory. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

usage() {
    cat <<'TEXT'
usage: bash launch/quickstart.sh [--novel] [--ranks N] [--section.key value ...]

Creates .venv with the tested versions, then trains launch/recipes/quickstart.yaml twice on all GPUs, or on two CPU
ranks: with memory, and without (the baseline). The model answers questions about facts that it read many segments
earlier; the last table compares the two. Steps that are already done are skipped.

  --novel                 train launch/recipes/novel.yaml instead: perplexity of a novel, about 3 minutes after installing
  --ranks N               processes to start
  --training.steps 200    override any key of the recipe; `.venv/bin/hmt-ds keys` lists them

The runs are written to runs/quickstart and runs/quickstart-baseline, or to the first free ones of runs/quickstart-2, -3
and so on, unless --training.output names a folder. --checkpoint.resume auto resumes the newest of these runs. Paths are
relative to the project. PYTHON=python3.11 selects the Python that creates .venv.
TEXT
}

name=quickstart resume=false
output='' previous=''
arguments=()
for word in "$@"; do
    case $previous in
        --training.output) output=$word ;;
        --checkpoint.resume) if [ "$word" = auto ]; then resume=true; fi ;;
    esac
    case $word in
        -h | --help) usage && exit ;;
        --novel) name=novel ;;
        --training.output=*) output=${word#*=} ;;
        --checkpoint.resume=auto) resume=true ;;
    esac
    case $word in
        --novel | --training.output | --training.output=*) ;;
        *) if [ "$previous" != --training.output ]; then arguments+=("$word"); fi ;;
    esac
    previous=$word
done

setup_env

if [ $name = novel ] && ! [ -f runs/novel-tokenizer/tokenizer_config.json ]; then # the last file that is written
    say "Training a tokenizer on Pride and Prejudice (runs/novel-tokenizer)"
    .venv/bin/python -m hmt_ds.cli tokenizer hmt_ds/data/samples/prideprejudice.txt \
        --vocab-size 4096 --output runs/novel-tokenizer
fi

if [ -z "$output" ]; then
    output=runs/$name
    if $resume; then
        newest=$(printf '%s\n' "runs/$name" "runs/$name"-[0-9]* | grep -v -e baseline -e '\*' | sort -V | tail -n 1)
        if [ -d "$newest" ]; then output=$newest; fi
    else
        number=1
        while [ -n "$(ls -A "$output" "$output-baseline" 2>/dev/null)" ]; do
            number=$((number + 1))
            output=runs/$name-$number
        done
    fi
fi

ranks=$(.venv/bin/python -c 'import torch; print(torch.cuda.device_count() or 2)')
train() { .venv/bin/python -m hmt_ds.cli train "launch/recipes/$name.yaml" --ranks "$ranks" "${arguments[@]}" "$@"; }

say "Training launch/recipes/$name.yaml into $output"
train --training.output "$output"
say "Training the same without memory into $output-baseline"
train --training.output "$output-baseline" --memory.mode backbone --memory.recall_loss 0
say "With and without memory"
.venv/bin/python -m hmt_ds.cli compare "$output-baseline" "$output" --picture "$output/compare.png"
