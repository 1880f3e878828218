"""Pipeline stages give the gradients of one process: a sample of the grid in pipeline_gradients.py."""

import pytest
from pipeline_gradients import BACKBONE, Case, run_cases

TWO = [
    Case(2, 1, 2, 4),
    Case(2, 1, 5, 1, "rmt", "lora"),
    Case(2, 1, 3, 2, mode="backbone"),
    Case(2, 1, 1, 2, train="lora"),
    Case(2, 1, 2, 2, kept_graphs=5),
]
THREE = [
    Case(3, 1, 5, 4, spill=True, kept_graphs=7),
    Case(3, 1, 1, 1, "rmt"),
    Case(3, 1, 3, 2, mode="backbone"),
    Case(3, 1, 2, 4, mode="backbone", kept_graphs=3),
]
FOUR = [Case(2, 2, 2, 2, accumulation=2), Case(4, 1, 2, 4), Case(2, 2, 5, 2, precision="bf16")]


@pytest.mark.parametrize("cases", [TWO, THREE, FOUR], ids=["2 ranks", "3 ranks", "4 ranks"])
def test_gradients_are_those_of_one_process(cases):
    """Covers tied weights on two stages, clipping by the norm over all stages, and memories carried between windows."""
    assert BACKBONE["tie_word_embeddings"]
    for row in run_cases(cases):
        low = row["case"][8] == "bf16"
        # (all weights as one vector: the adapters' gradients alone are small differences of large numbers)
        assert row["whole_gradient"] < (2e-2 if low else 1e-6 if row["case"][5] == "whole" else 5e-6), row
        assert low or row["gradient"] < 1e-5, row
        assert row["weights"] < (2e-2 if low else 1e-5) and row["loss"] < (1e-3 if low else 1e-6), row
        assert row["norm"] < (1e-2 if low else 1e-5) and row["memories"] < (0.1 if low else 1e-5), row
        assert max(row["norms"]) > 0.01, "nothing was clipped"
        assert not row["apart"], "tied weights have drifted apart"
        assert row["recomputed"] == row["recomputed_expected"], row


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case(3, 2, 2, 2), Case(4, 2, 2, 4)], ids=["3 x 2", "4 x 2"])
def test_on_more_ranks(case):
    (row,) = run_cases([case])
    assert row["gradient"] < 1e-5 and row["weights"] < 1e-5 and row["norm"] < 1e-5, row
