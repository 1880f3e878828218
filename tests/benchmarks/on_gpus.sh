#!/usr/bin/env bash
# What RESULTS.md is measured with: bash tests/benchmarks/on_gpus.sh FOLDER NAME...
# Each NAME is a function below; its log and JSON go to FOLDER. One run takes one to eight minutes.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
folder=${1:?a folder for the numbers}
shift
mkdir -p "$folder"
read -ra PIPELINE <<<"${PIPELINE:-}" # more arguments for pipelines

# bench NAME SECONDS RECIPE DEPTH BATCH [arguments]: one run, which is ended after so many seconds
bench() {
    local name=$1 seconds=$2 recipe=$3 window=(--training.bptt_depth "$4" --training.batch_size "$5")
    shift 5
    timeout "$seconds" "${PYTHON:-python3}" -m hmt_ds.cli bench "launch/recipes/$recipe.yaml" --json "$folder/$name.json" \
        "${window[@]}" "$@" \
        >"$folder/$name.log" 2>&1
    echo "== $name: exit code $?"
    grep -E "tokens/s|MFU|^. peak|held by torch|^error|kept  |ratio|HMT-pytorch|bubble|of the schedule" "$folder/$name.log"
}

# one H100 --------------------------------------------------------------------------------------------------------------
small() { bench small 150 bench-1.1b 16 1 --ranks 1; }
best() { bench best 200 bench-1.1b 8 8 --ranks 1; }
# memory against depth, one segment kept: the slope
slope() {
    for segments in 8 64 512; do
        bench "slope$segments" 200 bench-1.1b "$segments" 1 --ranks 1 --steps 1 --warmup 1 \
            --compute.recompute segment --compute.summary_batch 8 --compute.cuda_graphs never
    done
}
# a document of 1,048,576 tokens, backpropagated through whole
million() { bench million 200 bench-1.1b 1024 1 --ranks 1 --steps 1; }
million7b() { bench million7b 330 bench-6.8b 1024 1 --ranks 1 --model.train lora --steps 1; }
# beside HMT-pytorch, in its count of L; REFERENCE is a clone
reference() {
    for segments in 2 8 16 32; do
        bench "reference$segments" 200 bench-1.1b "$segments" 1 --memory.segment_length 990 \
            --reference "${REFERENCE:?}"
    done
}
# the backbone alone with full attention, and ours, over one document
attention() {
    for segments in ${SEGMENTS:-16 64 256}; do
        bench "full$segments" 300 bench-1.1b 1 1 --ranks 1 --memory.mode backbone --memory.sensory_tokens 0 \
            --memory.segment_length $((segments * 1024)) --compute.recompute segment+layer --steps 1 --warmup 1 \
            --model.source.max_position_embeddings $((segments * 1024))
        bench "memory$segments" 200 bench-1.1b "$segments" 1 --ranks 1 --steps 1
    done
}
# every weight of 6.8B on one H100: DeepSpeed's file for offloading, with the weights and 3 of 10 parts of the optimizer on
# the GPU. All on the host would be 136 GiB: weights, moments and gradients in float32, these twice and page-locked, for
# which torch takes powers of two.
offload() {
    part_offloaded
    bench offload 480 bench-6.8b 8 "${BATCH:-8}" --ranks 1 "${offloaded[@]}"
}
part_offloaded() {
    "${PYTHON:-python3}" - "$folder/zero3_part.json" <<'END'
import json, sys
config = json.load(open("ds_configs/zero3_offload.json"))
del config["zero_optimization"]["offload_param"]
config["zero_optimization"]["offload_optimizer"]["ratio"] = 0.7
json.dump(config, open(sys.argv[1], "w"))
END
}
offloaded=(--deepspeed "$folder/zero3_part.json" --compute.reduction segment --compute.recompute segment+layer --steps 1
    --warmup 1)

# two GPUs --------------------------------------------------------------------------------------------------------------
# two of 80 GB: HIDDEN_LAYERS=20, for 6.8B (32 layers) needs more with ZeRO-2. Rows of a micro-batch: BATCH.
shape=(--model.source.num_hidden_layers "${HIDDEN_LAYERS:-32}")
reduction=(--compute.reduction "${REDUCTION:-step}")
stage2() { bench stage2 250 bench-6.8b 8 "${BATCH:-4}" --ranks 2 "${shape[@]}" "${reduction[@]}"; }
stage3() {
    bench stage3 250 bench-6.8b 8 "${BATCH:-4}" --ranks 2 --deepspeed ds_configs/zero3.json "${shape[@]}" "${reduction[@]}"
}
# both with gradients reduced after each segment: stage 3 streams
streaming() {
    local segment=(--compute.reduction segment --compute.recompute segment --compute.summary_batch 2 --warmup 2)
    segment+=(--compute.kernels "${KERNELS:-auto}")
    bench segment2 200 bench-6.8b 8 "${BATCH:-4}" --ranks 2 "${segment[@]}" "${shape[@]}"
    for layers in ${LAYERS:-2 4 8}; do
        bench "streaming$layers" 200 bench-6.8b 8 "${BATCH:-4}" --ranks 2 --deepspeed ds_configs/zero3.json "${segment[@]}" \
            --compute.leaf_layers "$layers" "${shape[@]}"
    done
}
# a first look at whether a pipeline runs
pipeline_small() {
    bench pipeline_small 200 bench-1.1b 8 8 --ranks 2 --deepspeed ds_configs/zero1.json --pipeline.stages 2 --steps 2 --warmup 3
}
# 32 rows a step: on a pipeline of two stages with ZeRO-1, PARTS micro-batches at a time, and with both ranks data-parallel
pipeline() {
    local rows=${BATCH:-4}
    for segments in ${SEGMENTS:-8}; do
        for parts in ${PARTS:-2 8}; do
            bench "pipeline$segments-$parts" 300 bench-6.8b "$segments" $((rows * parts)) --ranks 2 --deepspeed ds_configs/zero1.json \
                --pipeline.stages 2 --pipeline.micro_batches "$parts" --training.gradient_accumulation $((32 / rows / parts)) \
                --steps 1 --warmup 3 "${shape[@]}" "${PIPELINE[@]}"
        done
    done
}
pipeline_beside() {
    local rows=${BATCH:-4}
    for segments in ${SEGMENTS:-8}; do
        for stage in ${STAGES:-2 3}; do
            bench "pipeline$segments-zero$stage" 300 bench-6.8b "$segments" "$rows" --ranks 2 --deepspeed "ds_configs/zero$stage.json" \
                --training.gradient_accumulation $((16 / rows)) --steps 1 --warmup "${WARMUP:-3}" "${shape[@]}" \
                "${reduction[@]}"
        done
    done
}
# simulated beside measured pipeline steps, one row a micro-batch
simulated() {
    "${PYTHON:-python3}" -m torch.distributed.run --nproc_per_node 2 tests/benchmarks/pipeline_times.py launch/recipes/bench-6.8b.yaml \
        --deepspeed ds_configs/zero1.json --pipeline.stages 2 --compute.recompute segment "${shape[@]}" \
        >"$folder/simulated.log" 2>&1
    echo "== simulated: exit code $?"
    grep -E "^\||^a message|rror" "$folder/simulated.log"
}
# every weight of 13B, by segments at stage 3 and on a pipeline
shape13b=(--model.source.hidden_size 5120 --model.source.intermediate_size 13824 --model.source.num_hidden_layers 40
    --model.source.num_attention_heads 40)
pipeline_large() {
    bench pipeline_large 300 bench-6.8b 8 "${BATCH:-8}" --ranks 2 --deepspeed ds_configs/zero1.json --pipeline.stages 2 \
        --pipeline.micro_batches "${BATCH:-8}" --steps 1 --warmup 3 "${shape13b[@]}"
}
# the same on two of 80 GB, each of which then has what one has of 6.8B
large_offload() {
    part_offloaded
    bench large_offload 540 bench-6.8b 8 "${BATCH:-8}" --ranks 2 "${offloaded[@]}" "${shape13b[@]}"
}
large() {
    bench large 400 bench-6.8b 8 1 --ranks 2 --deepspeed ds_configs/zero3.json --compute.reduction segment --steps 2 \
        "${shape13b[@]}"
}

for name in "$@"; do
    "$name"
done
