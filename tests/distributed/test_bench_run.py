"""`hmt-ds bench` on two ranks, with a recipe whose data do not exist and whose folder has a run."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from commands import run_command

BATCH, DEPTH, L, K, ACCUMULATION = 2, 4, 16, 4, 2
# embeddings and head, two layers of 7,744 weights, the last norm; two prompts, and the recall's two projections
LAYERS = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32)
PARAMETERS = 2 * 64 * 32 + LAYERS + 32 + 2 * 32 + 2 * 32 * 32


class Run(NamedTuple):
    """The results of the command."""

    printed: str
    result: dict[str, Any]
    trace: Path
    output: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return bench(tmp_path_factory.mktemp("bench"))


def bench(folder: Path, *overrides: str) -> Run:
    backbone = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    backbone |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    training = {"output": str(folder / "run"), "steps": 9, "bptt_depth": DEPTH, "batch_size": BATCH}
    recipe = {
        "model": {"source": backbone, "precision": "bf16"},
        "memory": {"segment_length": L, "sensory_tokens": K, "cached_memories": 5},
        "data": {"train": {"source": "nowhere.jsonl"}},
        "training": training | {"gradient_accumulation": ACCUMULATION},
        "optimizer": {"lr": 1e-3},
        "compute": {"reduction": "step", "summary_batch": 1},
        "deepspeed": "ds_configs/zero2.json",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    words = (
        "--steps",
        "3",
        "--warmup",
        "1",
        "--json",
        str(folder / "new" / "a.json"),
        "--trace",
        str(folder / "trace"),
    )
    code, printed = run_command("bench", str(folder / "recipe.yaml"), "--ranks", "2", *words, *overrides)
    assert code == 0, printed
    result = json.loads((folder / "new" / "a.json").read_text())
    return Run(printed, result, folder / "trace" / "step.json", folder / "run")


def test_reads_what_was_asked_for(run):
    assert len(run.result["steps"]) == 3 and run.result["run"]["ranks"] == 2
    assert {step["fresh_tokens"] for step in run.result["steps"]} == {2 * BATCH * DEPTH * L * ACCUMULATION}
    assert run.result["run"]["parameters"] == run.result["run"]["trained_parameters"] == PARAMETERS
    assert run.result["compute"]["reduction"] == "step" and run.result["plan"]["kept_segments"] == 1


def test_flops(run):
    """22 positions per segment and 10 per summary are 2 for each of 16 tokens; all segments but one are recomputed."""
    flops = run.result["flops"]
    assert flops["useful_flops_per_token"] == 6 * PARAMETERS * 2
    assert flops["useful_flops_per_window"] == 6 * PARAMETERS * 2 * BATCH * DEPTH * L
    assert flops["repeated_flops_per_window"] == 2 * LAYERS * BATCH * (3 * 22 + 4 * 10)


def test_rates_belong_to_the_seconds(run):
    whole, part = (run.result["speed"][name] for name in ("whole_step", "forward_and_backward"))
    middle = sorted(step["seconds"] for step in run.result["steps"])[1]
    tokens = BATCH * DEPTH * L * ACCUMULATION
    assert whole["seconds"] == middle and whole["tokens_per_second_per_gpu"] == pytest.approx(tokens / middle)
    assert whole["useful_tflops_per_second"] == pytest.approx(6 * PARAMETERS * 2 * tokens / middle / 1e12)
    more = 1 + run.result["flops"]["repeated_flops_per_window"] / run.result["flops"]["useful_flops_per_window"]
    assert whole["executed_tflops_per_second"] == pytest.approx(more * whole["useful_tflops_per_second"])
    assert 0 < part["seconds"] < whole["seconds"] < 30 and not any("mfu" in name for name in whole)


def test_phases_are_the_step(run):
    phases = run.result["phase_seconds"]
    assert list(phases) == ["summary", "forward", "recompute", "backward", "wait", "reduce", "step", "other"]
    assert all(seconds > 0 for seconds in phases.values()) and phases["backward"] > phases["other"]
    assert 0.2 < sum(phases.values()) / run.result["speed"]["whole_step"]["seconds"] < 5  # cores are shared


def test_memory(run):
    """Bytes per weight: 2; 4 for unsharded sums and half of DeepSpeed's; half of float32 weights and moments."""
    memory = run.result["memory"]
    assert memory["weights_bytes"] == pytest.approx(2 * PARAMETERS, rel=0.02)
    assert memory["optimizer_states_bytes"] == pytest.approx(12 * PARAMETERS / 2, rel=0.02)
    assert 6 * PARAMETERS * 0.98 < memory["gradients_bytes"] < 12 * PARAMETERS
    assert 100e6 < memory["peak_bytes"] < 10e9 and memory["activations_bytes"] is None


def test_trace_names_the_phases(run):
    names = {event.get("name") for event in json.loads(run.trace.read_text())["traceEvents"]}
    assert {"summary", "forward", "recompute", "backward", "reduce", "step"} <= names


def test_prints_once_and_leaves_the_run_alone(run):
    for title in ("what was run", "speed per GPU", "time by phase", "memory of the fullest rank"):
        assert run.printed.count(title) == 1
    assert [path.name for path in run.output.iterdir()] == ["metrics.jsonl"]


def test_the_adapted_interface(tmp_path):
    """24 positions per segment, with sink, recalled and last memory, and write embedding; 6 per summary."""
    result = bench(tmp_path, "--memory.interface", "adapted").result
    parameters = PARAMETERS - 2 * 32 + (1 + 3 + 2) * 32 + 1  # a sink, three prompts, scale and shift, recency
    assert result["run"]["parameters"] == parameters
    assert result["flops"]["useful_flops_per_window"] == 6 * parameters * BATCH * DEPTH * (24 + 6)
    assert result["flops"]["repeated_flops_per_window"] == 2 * LAYERS * BATCH * (3 * 24 + DEPTH * 6)
