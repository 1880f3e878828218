"""A checkpoint goes on in any layout: other numbers of ranks, other ZeRO stages, with offloading or without."""

from typing import Any

import pytest
from layouts import run_pairs

ROUNDING = 1e-5  # of a loss, relative; seen are 3e-7


def assert_goes_on(found: dict[str, dict[str, Any]], number: int) -> None:
    """Every pair within rounding, and those of one layout the same to the bit."""
    assert len(found) == number
    for pair, row in found.items():
        saved, _, resumed = pair.partition(" -> ")
        assert row["identical"] if saved == resumed else row["loss"] < ROUNDING, (pair, row)


def test_a_sample_of_layouts():
    """Stages 1 and 3 on one and two ranks: between stages, between numbers of ranks, and both at once."""
    assert_goes_on(run_pairs(("zero1", "zero3"), (1, 2)), 16)


@pytest.mark.slow
def test_all_pairs_of_layouts():
    assert_goes_on(run_pairs(), 225)
