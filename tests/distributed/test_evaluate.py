"""`hmt-ds evaluate` finds again what a run has found at its end, and holds no more than the weights."""

import json
import re
import shutil

import numpy as np
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
    assert code == 0 and "held-out loss" in printed, printed
    assert json.loads(file.read_text()) == found
    earlier = output / "checkpoints" / "step_000004"
    code, printed = run_command("evaluate", str(earlier), "--ranks", "1")
    there = json.loads((output / "evaluation" / "step_000004.json").read_text())
    assert code == 0 and there["step"] == 4 and there["rows"] != found["rows"], printed
    (earlier / "rank_00000.safetensors").write_bytes(b"x")
    code, printed = run_module("hmt_ds.evaluate", str(earlier), ranks=1)
    assert code == 2 and f"error: {earlier} is damaged: rank_00000.safetensors has 1 bytes" in printed, printed
    moved = output.rename(tmp_path / "moved")
    (moved / file.relative_to(output)).unlink()
    code, printed = run_module("hmt_ds.evaluate", str(moved))
    assert code == 0 and not output.exists(), printed
    again = moved / file.relative_to(output)
    assert json.loads(again.read_text()) == found
    code, printed = run_module("hmt_ds.evaluate", str(moved), "--evaluation.documents", "2")
    (other,) = moved.glob("evaluation/*_*_*.json")  # other data: the run's own file stays
    assert code == 0 and str(other) in printed and json.loads(again.read_text()) == found
    assert [json.loads(file.read_text())["data"]["documents"] for file in (again, other)] == [4, 2]


def test_a_converted_folder_has_the_losses_of_its_run(tmp_path):
    """The folder alone says how to read; the documents are named on the command line, and the run is not needed."""
    make_materials(tmp_path)
    recipe, output, target = write_recipe(tmp_path, 1), tmp_path / "run", tmp_path / "hf"
    values = yaml.safe_load(recipe.read_text())
    values["data"]["validation"], values["evaluation"] = values["data"]["train"], {"segments_read": [1, 2]}
    values["training"] |= {"steps": 2, "batch_size": 4}
    values["memory"] |= {"interface": "adapted", "memory_tokens": 2, "recalled_memories": 2}
    recipe.write_text(yaml.safe_dump(values))
    code, printed = train(recipe, output)
    assert code == 0 and run_command("convert", str(output), str(target))[0] == 0, printed
    found = json.loads((output / "evaluation/step_000002.json").read_text())
    shutil.rmtree(output)
    held_out = [f"--data.validation={json.dumps(values['data']['validation'])}"]
    code, printed = run_command("evaluate", str(target), *held_out, "--evaluation.segments_read", "[1, 2]")
    (file,) = target.glob("evaluation/*.json")
    again = json.loads(file.read_text())
    assert code == 0 and again["data"] | {"source": ""} == found["data"] | {"source": ""}, printed
    for row, expected in zip(again["rows"], found["rows"], strict=True):
        for name, value in expected.items():
            assert value is None or row[name] == pytest.approx(value, abs=1e-6), (name, printed)
    code, printed = run_command("compare", str(file), str(file), "--picture", str(tmp_path / "a.png"))
    assert code == 0, printed
    code, printed = run_command("train", str(target))
    assert code == 2 and "is a model, not a run: train a recipe with --model.source" in printed, printed


def test_documents_have_the_same_losses_however_they_are_read(tmp_path):
    """On one rank, on two, and on a pipeline of two stages with micro-batches of two rows."""
    make_materials(tmp_path)
    recipe = write_recipe(tmp_path, 1)
    values = yaml.safe_load(recipe.read_text())
    values["data"]["validation"] = values["data"]["train"]
    values["model"]["source"]["initializer_range"] = 0.3  # with less, the memory would hardly matter
    recipe.write_text(yaml.safe_dump(values))
    four, two = (["--evaluation.batch_size", f"{n}", "--training.batch_size", "4"] for n in (4, 2))
    adapted = ["--memory.interface", "adapted", "--memory.recalled_memories", "2"]
    pipeline = [*four, "--pipeline.stages", "2"]
    one_rank = dict(zip(("paper", "adapted"), run_cases(recipe, [four, four + adapted], ranks=1), strict=True))
    cases = [two, two + adapted, pipeline, pipeline + adapted]  # DeepSpeed builds nothing else behind a pipeline
    for case, found in run_cases(recipe, cases):
        expected = one_rank["adapted" if "adapted" in case else "paper"][1]["untrained"]
        for name, losses in expected.items():
            if name != "swapped" or case[1] == "4":  # with two rows a rank, each row has another partner
                np.testing.assert_allclose(found["untrained"][name], losses, rtol=1e-5, atol=1e-6, err_msg=f"{case}")
    for _, found in one_rank.values():
        swapped, own, none = (np.array(found["untrained"][name])[:, 1:] for name in ("swapped", "own", "none"))
        compared = swapped > 0
        assert own.shape == (4, 3, 8) and compared.sum() > 20
        for one, other in ((swapped, own), (swapped, none), (none, own)):  # a mix-up would show
            assert (abs(one - other)[compared] > 1e-3).mean() > 0.95


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
