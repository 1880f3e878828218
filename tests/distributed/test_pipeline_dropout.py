"""A recomputed item on a pipeline stage repeats its dropout."""

from pipeline_dropout import ITEMS, OPT
from ranks import run_ranks


def test_items_read_again_have_the_gradients_of_kept_graphs():
    """OPT has dropout without a dropout module."""
    for stages in run_ranks("pipeline_dropout.py", [OPT | {"dropout": 0.1}, OPT | {"layerdrop": 0.5}]):
        for found in stages:
            assert found["again"] == [0, ITEMS]
            assert found["off"] < 1e-5, found
            assert found["other"] > 0.1, "nothing was dropped"
