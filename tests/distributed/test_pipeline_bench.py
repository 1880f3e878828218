"""`hmt-ds bench` on two stages: numbers of both together, and the phases of each."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from commands import run_command

BATCH, DEPTH, L, K, ACCUMULATION = 4, 3, 16, 4, 2
# embeddings and head, three layers of 7,744 weights, the last norm; two prompts, and the recall's two projections
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
FIRST, LAST = 64 * 32 + 2 * LAYER + 2 * 32, 64 * 32 + LAYER + 32 + 2 * 32 * 32
# 22 positions a segment and 10 a summary
POSITIONS = L + K + 2 + L // 2 + 2
PHASES = ["summary", "recall", "forward", "backward", "wait", "reduce", "step", "other"]


class Run(NamedTuple):
    """Printed tables and JSON numbers."""

    printed: str
    result: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return bench(tmp_path_factory.mktemp("pipeline_bench"))


def bench(folder: Path, *overrides: str) -> Run:
    backbone = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    backbone |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    training = {"output": str(folder / "run"), "steps": 9, "bptt_depth": DEPTH, "batch_size": BATCH}
    recipe = {
        "model": {"source": backbone, "precision": "bf16"},
        "memory": {"segment_length": L, "sensory_tokens": K, "cached_memories": 5},
        "data": {"train": {"source": "nowhere.jsonl"}},
        "training": training | {"gradient_accumulation": ACCUMULATION},
        "pipeline": {"stages": 2, "layers": [2, 1]},
        "optimizer": {"lr": 1e-3},
        "deepspeed": "ds_configs/zero1.json",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ("--steps", "3", "--warmup", "1", "--json", str(folder / "a.json"))
    code, printed = run_command("bench", str(folder / "recipe.yaml"), "--ranks", "2", *words, *overrides)
    assert code == 0, printed
    return Run(printed, json.loads((folder / "a.json").read_text()))


def test_stages_share_their_tokens(run):
    tokens = BATCH * DEPTH * L * ACCUMULATION
    assert [step["fresh_tokens"] for step in run.result["steps"]] == [tokens] * 3
    middle = sorted(step["seconds"] for step in run.result["steps"])[1]
    whole = run.result["speed"]["whole_step"]
    assert whole["seconds"] == middle and whole["tokens_per_second_per_gpu"] == pytest.approx(tokens / 2 / middle)
    assert whole["useful_tflops_per_second"] == pytest.approx(
        6 * (FIRST + LAST) * POSITIONS / L * tokens / 2 / middle / 1e12
    )


def test_everything_is_recomputed(run):
    flops, whole = run.result["flops"], run.result["speed"]["whole_step"]
    assert flops["useful_flops_per_window"] == 6 * (FIRST + LAST) * POSITIONS * BATCH * DEPTH
    assert flops["repeated_flops_per_window"] == 2 * 3 * LAYER * POSITIONS * BATCH * DEPTH
    more = 1 + flops["repeated_flops_per_window"] / flops["useful_flops_per_window"]
    assert whole["executed_tflops_per_second"] == pytest.approx(more * whole["useful_tflops_per_second"])


def test_the_pipeline_is_described(run):
    pipeline, about = run.result["pipeline"], run.result["run"]
    assert (pipeline["stages"], pipeline["micro_batches"], pipeline["layers"], about["pipelines"]) == (2, 2, [2, 1], 1)
    assert about["parameters"] == about["trained_parameters"] == FIRST + LAST and run.result["plan"] is None
    assert "1 x 2 stages of 2, 1 layers, 2 micro-batches" in run.printed and "batch 4 per pipeline" in run.printed
    assert "summaries of 2 together" in " ".join(run.printed.replace("│", " ").split())
    assert "0, 0 autograd graphs of 9 forward passes" in " ".join(run.printed.replace("│", " ").split()), (
        "on CPUs nothing is measured"
    )


def test_each_stage_has_its_phases(run):
    first, last = run.result["pipeline"]["phase_seconds"]
    assert list(first) == list(last) == PHASES and run.result["phase_seconds"] == first
    # recalls run on the last stage alone, all else on both
    assert first["recall"] == 0 and min(*last.values(), *(first[name] for name in PHASES if name != "recall")) > 0
    assert first["backward"] > first["forward"] and last["backward"] > last["forward"]
    assert run.printed.count("seconds by phase and stage") == 1


def test_bubbles_are_the_time_without_work(run):
    pipeline = run.result["pipeline"]
    work = [sum(seconds[name] for name in PHASES[:4]) for seconds in pipeline["phase_seconds"]]
    whole = max(done + seconds["wait"] for done, seconds in zip(work, pipeline["phase_seconds"], strict=True))
    assert pipeline["bubbles"] == pytest.approx([1 - done / whole for done in work])
    # f = 22 and s = 10 positions: stages work 4 SB(f + s) and wait 4 (P-1) f (parallel/pipeline/README.md), less f,
    # in which the first stage recomputes the segment of its first backward pass
    assert pipeline["schedule_bubbles"] == pytest.approx([3 * 22 / (4 * 3 * 2 * 32 + 3 * 22)] * 2)


def test_simulated_bubbles(run):
    """At least the pipeline's fill and drain are idle. (Benchmarks compare with the measured bubbles.)"""
    assert all(0 < share < 1 for share in run.result["pipeline"]["simulated_bubbles"])
    assert "simulated with these times" in run.printed


def test_memory_is_that_of_one_stage(run):
    """Bytes per weight: 2; 4 of DeepSpeed's gradient sums; 12 of optimizer states, sharded over one pipeline alone."""
    memory = run.result["memory"]
    own = (FIRST, LAST)[memory["rank"]]
    assert memory["weights_bytes"] == pytest.approx(2 * own, rel=0.02)
    assert memory["optimizer_states_bytes"] == pytest.approx(12 * own, rel=0.02)
    assert memory["gradients_bytes"] == pytest.approx(4 * own, rel=0.02)
    assert f"memory of the fullest rank, {memory['rank']} (stage {memory['rank']})" in " ".join(run.printed.split())


def test_the_adapted_interface(tmp_path):
    """24 positions of a segment, with sink, recalled and last memory and write embedding, and 6 of a summary."""
    result = bench(tmp_path, "--memory.interface", "adapted").result
    pipeline, flops = result["pipeline"], result["flops"]
    # a sink, three prompts, and scale and shift, on the first stage; the recall, with recency, on the last
    weights = FIRST - 2 * 32 + (1 + 3 + 2) * 32 + LAST + 1
    assert result["run"]["parameters"] == weights
    assert pipeline["forward_passes"] == 3 * DEPTH and pipeline["summary_group_size"] == 2
    assert flops["useful_flops_per_window"] == 6 * weights * (L + K + 4 + K + 2) * BATCH * DEPTH
    assert flops["repeated_flops_per_window"] == 2 * 3 * LAYER * (L + K + 4 + K + 2) * BATCH * DEPTH
    for name in ("bubbles", "schedule_bubbles", "simulated_bubbles"):
        assert all(0 <= bubble < 1 for bubble in pipeline[name]), (name, pipeline[name])
