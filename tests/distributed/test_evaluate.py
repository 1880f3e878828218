"""`hmt-ds evaluate` finds again what a run has found at its end, and holds no more than the weights."""

import json
import re

import pytest
import yaml
from commands import run_command
from ranks import PROJECT
from reading import run_cases
from tiny_recipe import STEPS, make_materials, run_module, train, write_recipe
from zero_cases import CONFIGS


def log_of(printed: str) -> list[str]:
    """Steps and phases in a run's log, without their numbers."""
    lines = re.findall(r"^\S+ \S+ rank 0 INFO (step \d+/\d+|.*: [\d.]+ s$)", printed, re.MULTILINE)
    return [re.sub(r": [\d.]+ s$", ": S s", line) for line in lines]


def test_a_run_is_evaluated_again(tmp_path):
    """Bit for bit on the same number of ranks; the table is printed, and the run gets the result, even if it moved."""
    make_materials(tmp_path)
    recipe, output = write_recipe(tmp_path, 2), tmp_path / "run"
    values = yaml.safe_load(recipe.read_text())
    values["data"]["validation"], values["evaluation"] = values["data"]["train"], {"segments_read": [1, 2]}
    recipe.write_text(yaml.safe_dump(values))
    code, printed = train(recipe, output)
    file = output / "evaluation" / f"step_{STEPS:06d}.json"
    found = json.loads(file.read_text())
    assert code == 0 and len(found["rows"]) == 2, printed
    assert log_of(printed) == [
        *("reading documents: S s", "building the model: S s"),
        *(f"step {n}/{STEPS}" for n in range(1, 5)),
        "saving step_000004: S s",
        *(f"step {n}/{STEPS}" for n in range(5, 9)),
        "saving step_000008: S s",
        *(f"step {n}/{STEPS}" for n in range(9, 13)),
        "saving step_000012: S s",
        "evaluating: S s",
    ]
    file.unlink()
    code, printed = run_command("evaluate", str(output), "--ranks", "2")
    assert code == 0 and "held-out perplexity" in printed, printed
    assert json.loads(file.read_text()) == found
    moved = output.rename(tmp_path / "moved")
    (moved / file.relative_to(output)).unlink()
    code, printed = run_module("hmt_ds.evaluate", str(moved))
    assert code == 0 and not output.exists(), printed
    assert json.loads((moved / file.relative_to(output)).read_text()) == found


ENGINES = {name: ["--deepspeed", f"ds_configs/{name}.json"] for name in CONFIGS}
ENGINES |= {"sharded": ["--deepspeed", "sharded.json"]}  # zero3, which by default keeps weights as small as these whole
ENGINES |= {"pipeline": [*ENGINES["zero1"], "--pipeline.stages", "2"]}
# in bf16 stage 0 reads in autocast, and the others have bf16 weights
SAMPLE = [("zero0", "bf16"), ("zero1", "bf16"), ("zero2", "fp32"), ("sharded", "bf16"), ("pipeline", "bf16")]
OTHERS = [(engine, kind) for engine in ENGINES for kind in ("fp32", "bf16") if (engine, kind) not in SAMPLE]


@pytest.mark.parametrize("cases", [SAMPLE, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["sample", "others"])
def test_a_reader_is_the_trained_model_without_its_optimizer(tmp_path, cases):
    """At all stages and on a pipeline: the same bits, and neither optimizer states nor master weights."""
    make_materials(tmp_path)
    recipe = write_recipe(tmp_path)
    values = yaml.safe_load(recipe.read_text())
    values["data"]["validation"], values["evaluation"] = values["data"]["train"], {"documents": 2}
    values["optimizer"] = {"lr": 0.1}
    recipe.write_text(yaml.safe_dump(values))
    sharded = json.loads((PROJECT / "ds_configs/zero3.json").read_text())
    sharded["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "sharded.json").write_text(json.dumps(sharded))
    overrides = [[*ENGINES[engine], "--model.precision", precision] for engine, precision in cases]
    for case, row in run_cases(recipe, overrides):
        assert row["found"] == row["expected"] != row["untrained"], case
        for weights, reader, executor in zip(row["weights"], row["reader"], row["executor"], strict=True):
            # a shard of master weights or of one of Adam's states would be half of the weights, or more
            assert reader < 1.2 * weights + 2**14 and executor > 1.8 * reader, (case, row)
