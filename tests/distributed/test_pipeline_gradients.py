"""Pipeline stages give the gradients of one process: a sample of the grid in pipeline_gradients.py."""

from typing import Any

import pytest
from pipeline_gradients import ADAPTED_GRID, ADAPTED_OTHERS, BACKBONE, Case, run_cases

ASKED: Any = {"interface": "adapted", "recalled": 2, "recall_loss": 0.3}
TWO = [
    Case(2, 1, 2, 4),
    Case(2, 1, 5, 1, "rmt", "lora"),
    Case(2, 1, 3, 2, mode="backbone"),
    Case(2, 1, 1, 2, train="lora"),
    Case(2, 1, 2, 2, kept_graphs=5),
    Case(2, 1, 5, 4, **ASKED),
    Case(2, 1, 5, 1, train="lora", **ASKED),
    Case(2, 1, 5, 2, train="frozen", interface="adapted"),
    Case(2, 1, 2, 2, mode="backbone", interface="adapted"),
    Case(2, 1, 2, 2, accumulation=2, loss="answers"),
    Case(2, 1, 4, 2, loss="packed"),
    Case(2, 1, 4, 4, loss="weighted", **ASKED),
]
THREE = [
    Case(3, 1, 5, 4, spill=True, kept_graphs=7),
    Case(3, 1, 1, 1, "rmt"),
    Case(3, 1, 3, 2, mode="backbone"),
    Case(3, 1, 2, 4, mode="backbone", kept_graphs=3),
    Case(3, 1, 5, 4, spill=True, kept_graphs=7, **ASKED),
    Case(3, 1, 5, 2, "rmt", interface="adapted"),
    Case(3, 1, 2, 1, "backbone", "frozen", interface="adapted"),
]
FOUR = [Case(2, 2, 2, 2, accumulation=2), Case(4, 1, 2, 4), Case(2, 2, 5, 2, precision="bf16")]
FOUR += [Case(2, 2, 2, 2, accumulation=2, **ASKED)]


def check_fp32(row: dict[str, Any]) -> None:
    # (all weights as one vector: the adapters' gradients alone are small differences of large numbers)
    assert row["whole_gradient"] < (1e-6 if row["case"][5] == "whole" else 5e-6) and row["gradient"] < 1e-5, row
    assert row["weights"] < 1e-5 and row["loss"] < 1e-6 and row["norm"] < 1e-5 and row["memories"] < 1e-5, row
    assert row["recall_loss"] < 1e-5 and (row["case"][13] == 0 or max(row["recall_losses"]) > 0.01), row
    check_course(row)


def check_bf16(row: dict[str, Any]) -> None:
    assert row["whole_gradient"] < 2e-2 and row["weights"] < 2e-2 and row["loss"] < 1e-3, row
    assert row["norm"] < 1e-2 and row["memories"] < 0.1, row
    check_course(row)


def check_course(row: dict[str, Any]) -> None:
    assert max(row["norms"]) > 0.01, "nothing was clipped"
    assert not row["apart"], "tied weights have drifted apart"
    assert row["recomputed"] == row["recomputed_expected"], row


@pytest.mark.parametrize("cases", [TWO, THREE, FOUR], ids=["2 ranks", "3 ranks", "4 ranks"])
def test_gradients_are_those_of_one_process(cases):
    """Covers tied weights on two stages, clipping by the norm over all stages, and memories carried between windows."""
    assert BACKBONE["tie_word_embeddings"]
    for row in run_cases(cases):
        (check_bf16 if row["case"][8] == "bf16" else check_fp32)(row)


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case(3, 2, 2, 2), Case(4, 2, 2, 4)], ids=["3 x 2", "4 x 2"])
def test_on_more_ranks(case):
    (row,) = run_cases([case])
    assert row["gradient"] < 1e-5 and row["weights"] < 1e-5 and row["norm"] < 1e-5, row


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_cases_of_the_adapted_interface(ranks):
    cases = [case for case in ADAPTED_GRID + ADAPTED_OTHERS if case.stages * case.pipelines == ranks]
    for row in run_cases(cases, timeout=1500):
        check_fp32(row)
