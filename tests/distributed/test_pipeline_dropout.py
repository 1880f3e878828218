"""A recomputed pass on a pipeline stage repeats its dropout."""

from pipeline_dropout import OPT, PASSES
from ranks import run_ranks


def test_recomputed_passes_have_the_gradients_of_kept_graphs():
    """OPT has dropout without a dropout module."""
    for stages in run_ranks("pipeline_dropout.py", [OPT | {"dropout": 0.1}, OPT | {"layerdrop": 0.5}]):
        for found in stages:
            assert found["recomputed"] == [0, PASSES]
            assert found["off"] < 1e-5, found
            assert found["other"] > 0.1, "nothing was dropped"
