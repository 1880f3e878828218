"""Resuming with a changed recipe: changes that cannot be applied are rejected, all others take effect at once."""

import json

import pytest
from tiny_recipe import make_materials, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics

RESUME = ("--checkpoint.resume", "auto", "--training.steps", "6")
WARMUP = ("--schedule.name", "WarmupLR")


@pytest.mark.slow
def test_other_schedules_and_optimizers(tmp_path):
    """At a warm-up of 3 steps the fourth and all later ones have the full rate."""
    make_materials(tmp_path)
    recipe, run = write_recipe(tmp_path, 1), tmp_path / "run"
    assert train(recipe, run, *WARMUP, "--training.steps", "4", ranks=1)[0] == 0

    betas = ("--optimizer.params", "{betas: [0.9, 0.95]}")
    code, printed = train(recipe, run, *RESUME, "--schedule.name", "WarmupCosineLR", *betas, ranks=1)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code != 0 and len(errors) == 2 and "Traceback" not in printed, printed
    assert "optimizer.params is {} in" in errors[0] and "{'betas': [0.9, 0.95]} here" in errors[0], printed
    assert "schedule.name is 'WarmupLR' in" in errors[1] and "'WarmupCosineLR' here" in errors[1], printed

    changes = ("--optimizer.lr", "0.002", "--optimizer.weight_decay", "0.5")
    code, printed = train(recipe, run, *RESUME, *WARMUP, *changes, ranks=1)
    assert code == 0 and "step 4" in printed, printed
    assert [row["learning_rate"] for row in read_metrics(run / "metrics.jsonl")][3:] == [0.001, 0.002, 0.002]
    saved = [json.loads((run / f"checkpoints/step_00000{step}/progress.json").read_text()) for step in (4, 6)]
    assert [{group["weight_decay"] for group in one["optimizer"]["groups"]} for one in saved] == [{0.0}, {0.5}]
