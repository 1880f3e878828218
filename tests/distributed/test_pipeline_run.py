"""`hmt-ds train` on pipeline stages: resumed, moved to another layout, converted, and with a dead stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_recipe import STEPS, finish, kill_at, make_materials, ranks_of, start, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics

RESUME = ("--checkpoint.resume", "auto")
ADAPTED = ("--memory.interface", "adapted", "--memory.recalled_memories", "2")
TWO_STAGES = ("--pipeline.stages", "2")
DEPTHS = ("--training.bptt_depth", "{0: 2, 4: 3, 7: 5}", "--training.random_depth", "true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Text and tokenizer of all runs."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_materials(folder)
    return folder


def losses(output: Path) -> list[tuple[int, Any, Any]]:
    """Step, loss and gradient norm of every row of the metrics."""
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(output / "metrics.jsonl")]


def without_dropout(recipe: Path) -> Path:
    """The recipe without dropout, so that layouts are comparable, and with four layers for three stages."""
    values = yaml.safe_load(recipe.read_text())
    values["model"]["source"] |= {"n_layer": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    file = recipe.with_name(f"plain_{recipe.name}")
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.parametrize("memory", [(), ADAPTED], ids=["paper", "adapted"])
def test_killed_and_resumed_it_is_the_same_run(folder, memory):
    """A killed and resumed run is the same bit for bit, with dropout and carried memories."""
    recipe, whole, broken = write_recipe(folder, 1), folder / f"whole{len(memory)}", folder / f"broken{len(memory)}"
    code, printed = train(recipe, whole, *TWO_STAGES, *memory)
    assert code == 0, printed
    kill_at(recipe, broken, *TWO_STAGES, *memory, step=6)
    code, printed = train(recipe, broken, *TWO_STAGES, *memory, *RESUME)
    assert code == 0 and "resumed from" in printed, printed
    assert losses(broken) == losses(whole) and len(losses(whole)) == STEPS


def test_in_bf16_nothing_but_ours_is_printed(folder):
    """DeepSpeed's bf16 optimizer prints its memory use eight times, which must not reach the terminal."""
    code, printed = train(write_recipe(folder, 1), folder / "bf16", *TWO_STAGES, "--model.precision", "bf16")
    assert code == 0 and "MA " not in printed, printed
    assert len(losses(folder / "bf16")) == STEPS


def close(one: list[tuple[int, Any, Any]], other: list[tuple[int, Any, Any]]) -> bool:
    """Assert that two runs agree within rounding."""
    pairs = zip(one, other, strict=True)
    return all(a[0] == b[0] and abs(a[1] / b[1] - 1) < 1e-5 and abs(a[2] / b[2] - 1) < 1e-3 for a, b in pairs)


def copy_up_to(run: Path, target: Path, step: int) -> Path:
    """Copy a run as it was after a step."""
    name = f"step_{step:06d}"
    (target / "checkpoints" / name).mkdir(parents=True)
    for file in (run / "checkpoints" / name).iterdir():
        (target / "checkpoints" / name / file.name).write_bytes(file.read_bytes())
    (target / "checkpoints" / "latest").write_text(name)
    (target / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    return target


@pytest.mark.parametrize("memory", [(), ADAPTED], ids=["paper", "adapted"])
def test_any_layout_goes_on_from_any_other(folder, memory):
    """From random weights and from checkpoints, ZeRO and pipelines of two and three stages take the same steps.

    Their windows have another depth in almost every step.
    """
    one, two = without_dropout(write_recipe(folder, 1)), without_dropout(write_recipe(folder, 2))
    place = folder / "adapted" if memory else folder
    zero, pipeline = place / "zero", place / "pipeline"
    assert train(two, zero, *DEPTHS, *memory, ranks=1)[0] == 0
    assert train(one, pipeline, *DEPTHS, *memory, *TWO_STAGES)[0] == 0
    assert close(losses(pipeline), losses(zero))
    for source, target, recipe, words, ranks in (
        (pipeline, "pipeline_to_zero", two, (), 1),
        (zero, "zero_to_pipeline", one, TWO_STAGES, 2),
        (pipeline, "two_to_three", one, ("--pipeline.stages", "3"), 3),
    ):
        run = copy_up_to(source, place / target, 4)
        code, printed = train(recipe, run, *DEPTHS, *memory, *words, *RESUME, ranks=ranks)
        assert code == 0 and "step 4" in printed, printed
        assert close(losses(run), losses(zero)), target


def test_a_converted_pipeline_is_the_converted_whole(folder):
    """A converted pipeline run has the names of a converted ZeRO run, and its weights within rounding."""
    from hmt_ds.conversion.convert import convert
    from hmt_ds.conversion.convert_options import ConvertOptions

    found = []
    for run in ("zero", "pipeline"):
        convert(folder / run, folder / f"{run}_converted", ConvertOptions())
        found.append(load_file(folder / f"{run}_converted" / "model.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(weight, found[1][name], rtol=0, atol=1e-4) for name, weight in found[0].items())
    assert json.loads((folder / "pipeline_converted/config.json").read_text())["model_type"] == "hmt"


@pytest.mark.parametrize("way", ["stage_killed", pytest.param("stage_stopped", marks=pytest.mark.slow)])
def test_a_stage_that_is_gone_ends_all(folder, way):
    """A stage killed in the middle of a step: a line says who waits for whom, and the run resumes from its checkpoint.

    (For a stopped stage the launcher waits half a minute for it to react to SIGTERM.)
    """
    recipe, output = write_recipe(folder, 1), folder / way
    broken = {"PYTHONPATH": str(Path(__file__).with_name("breaks")), "HMT_DS_BREAK": way}
    with start(recipe, output, *TWO_STAGES, "--pipeline.timeout_minutes", "0.1", **broken) as process:
        code, printed = finish(process, timeout=200)
        assert not ranks_of(output)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code != 0 and len(losses(output)) == 5, printed
    waits = [line for line in errors if "rank 1 did not" in line and "rank 0 waits for" in line]
    # the killed rank's own watchdog has a line too
    others = [line for line in errors if line not in waits]
    assert len(waits) == 1 and all("was killed, or crashed" in line for line in others), printed
    assert "Traceback" not in printed, printed
    code, printed = train(recipe, output, *TWO_STAGES, *RESUME)
    assert code == 0 and "step 4" in printed and len(losses(output)) == STEPS, printed
