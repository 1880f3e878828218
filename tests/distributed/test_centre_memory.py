"""The starting value of the memory embeddings' shift, in every layout; only in runs whose shift is new."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from centred_memory import CASES
from ranks import run_ranks
from test_convert_run import convert
from test_source_run import ONE_STEP, assert_equal, weights_of
from tiny_recipe import STEPS, make_materials, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics

SHIFT = "memory_embedding.shift"
SAID = "centring the memory: "
ADAPTED = ("--memory.interface", "adapted")
BREAKS = str(Path(__file__).with_name("breaks"))
LAYOUTS = {
    "zero0": (0, ()),
    "zero1": (1, ("--memory.mode", "rmt")),
    "zero3": (3, ("--compute.reduction", "segment")),
    "zero3-step": (3, ("--compute.reduction", "step", "--training.gradient_accumulation", "2", "--data.workers", "1")),
    "pipeline": (1, ("--pipeline.stages", "2", "--memory.mode", "rmt")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Text and tokenizer of all runs."""
    folder = tmp_path_factory.mktemp("centred")
    make_materials(folder)
    return folder


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    """All comparisons of one start."""
    return run_ranks("centred_memory.py", list(CASES))


@pytest.mark.parametrize("case", CASES)
def test_it_is_that_of_one_process(rows, case):
    """Nothing but the shift changes, in the weights, in the master weights and in the second tree of modules."""
    row, rounding = rows[case], 1e-2 if "bf16" in case else 1e-5
    assert max(row["shift"], row["stepped"], row["loss"]) < rounding, row
    assert row["moved"] > 0.1 and not row["others"] and not row["carried"] and not row["drawn"], row


def run(folder: Path, name: str, layout: str, *words: str, **environment: str) -> str:
    """Train; return what was printed."""
    stage, more = LAYOUTS[layout]
    code, printed = train(write_recipe(folder, stage), folder / name, *ADAPTED, *more, *words, **environment)
    assert code == 0, printed
    return printed


def losses(output: Path) -> list[tuple[int, Any, Any]]:
    """Step, loss and gradient norm of every row of the metrics."""
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(output / "metrics.jsonl")]


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] if name in ("zero0", "zero1") else []) for name in LAYOUTS]
)
def test_a_run_goes_on_as_if_nothing_had_happened(folder, layout):
    """Data, dropout and memories are those of a run that centres nothing; only the shift makes a difference."""
    words, names = ("--training.steps", "3"), [f"{layout}-{kind}" for kind in ("centred", "by_zero", "uncentred")]
    assert run(folder, names[0], layout, *words).count(SAID) == 1
    assert SAID in run(folder, names[1], layout, *words, PYTHONPATH=BREAKS, HMT_DS_BREAK="centred_by_zero")
    assert SAID not in run(folder, names[2], layout, *words, PYTHONPATH=BREAKS, HMT_DS_BREAK="uncentred")
    centred, by_zero, uncentred = (losses(folder / name) for name in names)
    assert by_zero == uncentred and len(uncentred) == 3
    assert centred != uncentred


@pytest.mark.parametrize("layout", ["zero3", "pipeline"])
def test_a_resumed_run_does_not_do_it_again(folder, layout):
    """It is the undisturbed run bit for bit."""
    whole, resumed = f"{layout}-whole", f"{layout}-resumed"
    run(folder, whole, layout)
    shutil.copytree(folder / whole, folder / resumed)
    for step in (8, 12):
        shutil.rmtree(folder / resumed / "checkpoints" / f"step_{step:06d}")
    printed = run(folder, resumed, layout, "--checkpoint.resume", "auto")
    assert "resumed from" in printed and "step 4" in printed and SAID not in printed, printed
    assert losses(folder / resumed) == losses(folder / whole) and len(losses(folder / whole)) == STEPS
    assert_equal(weights_of(folder / resumed, STEPS), weights_of(folder / whole, STEPS))


def test_a_trained_shift_is_kept(folder):
    """Of a converted folder and of another run; but without a memory there is no shift to keep."""
    run(folder, "first", "zero1", "--training.steps", "2", "--optimizer.lr", "0.05")
    run(folder, "without", "zero0", "--training.steps", "2", "--memory.mode", "backbone")
    code, printed = convert(folder / "first", folder / "hf")
    assert code == 0, printed
    trained = weights_of(folder / "first", 2)
    for source in ("hf", "first"):
        printed = run(folder, f"from_{source}", "zero1", *ONE_STEP, "--model.source", str(folder / source))
        assert SAID not in printed
        assert_equal(weights_of(folder / f"from_{source}", 1), trained)
    printed = run(folder, "from_without", "zero1", *ONE_STEP, "--model.source", str(folder / "without"))
    assert SAID in printed
    shift = weights_of(folder / "from_without", 1).read(SHIFT)
    assert not torch.allclose(shift, trained.read(SHIFT))


def test_other_memories_are_not_centred(folder):
    for name, words in (("paper", ("--memory.interface", "paper")), ("backbone", ("--memory.mode", "backbone"))):
        assert SAID not in run(folder, name, "zero0", "--training.steps", "1", *words)
