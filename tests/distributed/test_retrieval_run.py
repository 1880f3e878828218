"""A run on generated documents: it resumes exactly, and its evaluation finds the same on any number of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import PROJECT
from tiny_recipe import run_module, train

from hmt_ds.reporting.metrics import read_metrics

STEPS = 4


@pytest.fixture
def recipe(tmp_path) -> Path:
    """Windows of 2, then 5 segments, with a checkpoint between two steps of 5; dropout."""
    backbone = {"model_type": "gpt2", "vocab_size": 360, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    values: dict[str, Any] = {
        "model": {
            "source": {**backbone, "bos_token_id": 1, "eos_token_id": 1},
            "tokenizer": str(PROJECT / "hmt_ds/data/samples/words"),
            "precision": "fp32",
        },
        "memory": {"interface": "adapted", "segment_length": 20, "sensory_tokens": 4, "recall_loss": 0.5},
        "data": {"retrieval": {"kind": "overwritten"}},
        "training": {"output": str(tmp_path / "run"), "steps": STEPS, "batch_size": 2, "bptt_depth": {0: 2, 2: 5}},
        "optimizer": {"lr": 1e-3},
        "schedule": {"params": {"warmup_num_steps": 2, "total_num_steps": STEPS}},
        "deepspeed": "ds_configs/zero2.json",
        "checkpoint": {"every": 3},
        "evaluation": {"retrieval_segments": [3, 7], "documents": 5},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def losses(output: Path) -> list[tuple[int, float, float | None]]:
    return [(row["step"], row["loss"], row["recall_loss"]) for row in read_metrics(output / "metrics.jsonl")]


def test_a_run(recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, printed = train(recipe, whole)
    assert code == 0 and "memory found" in printed, printed
    found = json.loads((whole / f"evaluation/retrieval_step_{STEPS:06d}.json").read_text())
    assert [row["segments"] for row in found["rows"]] == [3, 7] and found["data"]["documents"] == 5
    assert (whole / f"evaluation/retrieval_step_{STEPS:06d}.png").exists()
    assert [recall is not None and recall > 0 for _, _, recall in losses(whole)] == [True] * 4

    train(recipe, parts, "--training.steps", "3")
    code, printed = train(recipe, parts, "--checkpoint.resume", "auto")
    assert code == 0 and losses(parts) == losses(whole), printed

    file = parts / f"evaluation/retrieval_step_{STEPS:06d}.json"
    file.unlink()
    code, printed = run_module("hmt_ds.evaluate", str(parts), "--training.batch_size", "3", ranks=1)
    again = json.loads(file.read_text())
    assert code == 0 and again["data"] == found["data"], printed
    for one, other in zip(again["rows"], found["rows"], strict=True):
        assert one["questions"] == other["questions"] and one["right"] == other["right"]

    file.unlink()
    stages = ("--pipeline.stages", "2", "--deepspeed", "ds_configs/zero1.json")
    code, printed = run_module("hmt_ds.evaluate", str(parts), *stages)
    on_pipeline = json.loads(file.read_text())
    assert code == 0 and on_pipeline["rows"] == again["rows"], printed

    file.write_text(json.dumps(again))
    code, printed = run_module("hmt_ds.evaluate", str(parts), "--data.retrieval.kind", "keys", ranks=1)
    (other_file,) = parts.glob("evaluation/retrieval_*_*_*.json")  # other data: the run's own file stays
    assert code == 0 and json.loads(file.read_text()) == again, printed
    assert json.loads(other_file.read_text())["data"]["kind"] == "keys"
    code, printed = train(recipe, parts, "--data.retrieval.kind", "keys", "--checkpoint.resume", "auto")
    assert code == 2 and "data.retrieval.kind is 'overwritten' in" in printed, printed
