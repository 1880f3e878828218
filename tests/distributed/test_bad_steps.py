"""Non-finite steps are skipped without a trace on real ranks; too many in a row end a run or roll it back.

``python -m pytest -m slow tests/distributed/test_bad_steps.py`` runs every stage, precision and reduction.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from bad_steps import SEGMENT, Case, run_cases
from ranks import PROJECT
from tiny_recipe import STEPS, make_materials, train, write_recipe
from zero_cases import CONFIGS

from hmt_ds.reporting.metrics import read_metrics

BREAKS = {"PYTHONPATH": f"{Path(__file__).with_name('breaks')}:{PROJECT}", "HMT_DS_BREAK": "poison"}
POISONED = 3  # the document with the poison; it is read from step 6 on
RESUME = ("--checkpoint.resume", "auto")
SAMPLE = [
    Case("zero0"),
    Case("zero0", "bf16", spoils="gradient"),
    Case("zero1", "bf16"),
    Case("zero2", reduction="segment", spoils="gradient"),
    Case("zero3", "bf16", "segment"),
    Case("zero3", spoils="gradient"),
    Case("zero2_offload", reduction="segment"),
    Case("zero3_offload", spoils="gradient"),
    Case("zero3_offload", reduction="segment"),
]
GRID = [
    Case(config, precision, way, spoils)
    for config in CONFIGS
    for precision in ("fp32", "bf16")
    for way in ("step", "segment")
    for spoils in ("loss", "gradient")
]
PIPELINE = [
    Case("pipeline", precision, spoils=spoils) for precision in ("fp32", "bf16") for spoils in ("loss", "gradient")
]


def check(row: dict[str, Any]) -> None:
    """The bad step is skipped on all ranks, changes nothing, and does not affect the next step."""
    case = Case(*row["case"])
    assert row["skipped"] == row["bad"] == [[False, True, False]] * len(row["skipped"]), case
    assert not row["changed_by_the_bad_step"] and not row["changed_in_the_end"], (case, row)
    assert row["moved"] and row["others_finite"] and not row["bad_memory"], case
    assert [row["losses"][0], row["losses"][2]] == row["good_losses"], case
    broken = [(rank, r, n) for rank, rows in enumerate(row["finite"]) for r, s in enumerate(rows)
              for n, finite in enumerate(s) if not finite]  # fmt: skip
    if case.spoils == "gradient":
        assert math.isfinite(row["losses"][1]) and not broken and row["reset_rows"] == [0, 0, 0], case
    else:
        assert math.isnan(row["losses"][1]) and row["reset_rows"] == [0, 1, 0], case
        # the last rank knows: of ZeRO's ranks it has the row, of pipeline stages the losses
        assert broken[0] == (len(row["finite"]) - 1, 1, SEGMENT) and len({place[:2] for place in broken}) == 1, broken


def test_a_bad_step_leaves_nothing():
    for row in run_cases(SAMPLE):
        check(row)


def test_a_bad_step_on_a_pipeline_leaves_nothing():
    for row in run_cases(PIPELINE):
        check(row)


@pytest.mark.slow
def test_a_bad_step_leaves_nothing_anywhere():
    for row in run_cases(GRID):
        check(row)


@pytest.mark.slow
def test_a_bad_step_in_one_of_two_pipelines():
    for row in run_cases(PIPELINE[:2], ranks=4):
        check(row)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Text of nine documents, and a tokenizer, for all runs."""
    folder = tmp_path_factory.mktemp("bad")
    make_materials(folder)
    text = (folder / "text.txt").read_text().replace("Chapter ", "chapter ")
    (folder / "text.txt").write_text("\n".join(f"Chapter {n}\n{text[400 * n : 400 * n + 400]}" for n in range(9)))
    return folder


def errors_in(printed: str) -> list[str]:
    """The error lines of a run's output."""
    return [line for line in printed.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (0, ()),
        pytest.param(1, ("--pipeline.stages", "2", "--training.batch_size", "4"), marks=pytest.mark.slow),
        pytest.param(1, (), marks=pytest.mark.slow),
        pytest.param(2, (), marks=pytest.mark.slow),
        pytest.param(3, ("--compute.reduction", "segment"), marks=pytest.mark.slow),
    ],
)
def test_too_many_end_the_run_or_roll_it_back(folder, stage, words):
    """The bad document is named; after a rollback the run continues without it, and so does a later start."""
    recipe, output = write_recipe(folder, stage), folder / f"run_{stage}_{len(words)}"
    words = (*words, "--training.max_bad_steps", "2", "--checkpoint.every", "1")
    code, printed = train(recipe, output, *words, **BREAKS)
    (error,) = errors_in(printed)
    rows = read_metrics(output / "metrics.jsonl")
    assert code == 2 and f"document {POISONED} of data.train" in error and "Traceback" not in printed, printed
    said = f"the step is skipped; it read document {POISONED} of data.train"
    assert said in printed and "not finite, and is dropped: " in printed, printed
    assert [row["skipped"] for row in rows[-3:]] == [0, 1, 2] and rows[-1]["loss"] is None
    assert rows[-1]["learning_rate"] == rows[-2]["learning_rate"] != rows[-3]["learning_rate"]
    assert not (output / "left_out.json").exists()

    back = ("--training.on_bad_steps", "rollback")
    code, printed = train(recipe, output, *words, *back, *RESUME, **BREAKS)
    rows = read_metrics(output / "metrics.jsonl")
    assert code == 0 and "back to" in printed and "on without them" in printed, printed
    assert json.loads((output / "left_out.json").read_text()) == {"documents": [POISONED]}
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and rows[-1]["loss"] is not None
    assert "step is skipped" not in printed.split("on without them")[1]

    longer = ("--training.steps", str(STEPS + 4), "--checkpoint.rate_jump", "true")
    code, printed = train(recipe, output, *words, *RESUME, *longer, **BREAKS)
    assert code == 0 and "step is skipped" not in printed, printed
