"""A checkpoint resumes in any layout: other numbers of ranks, other ZeRO stages, with and without offloading."""

from typing import Any

import pytest
from layouts import run_pairs

ROUNDING = {"fp32": 1e-5, "bf16": 2e-3}  # of a loss, relative; seen are 2e-7 and 3e-4


def assert_goes_on(found: dict[str, dict[str, Any]], number: int, precision: str = "fp32") -> None:
    """Every pair agrees within rounding, and pairs of the same layout bit for bit."""
    assert len(found) == number
    for pair, row in found.items():
        saved, _, resumed = pair.partition(" -> ")
        assert row["identical"] if saved == resumed else row["loss"] < ROUNDING[precision], (pair, row)


def test_a_sample_of_layouts():
    """Stages 1 and 3 on one and two ranks: between stages, between numbers of ranks, and both at once."""
    assert_goes_on(run_pairs(("zero1", "zero3"), (1, 2)), 16)


def test_memories_of_another_type():
    """In bf16 stage 0 carries float32 memories, and the other stages bfloat16 ones."""
    assert_goes_on(run_pairs(("zero0", "zero2"), (1,), precision="bf16"), 4, "bf16")


@pytest.mark.parametrize(
    ("train", "optimizer"),
    [
        ("lora", "momentum"),
        pytest.param("frozen", "AdamW", marks=pytest.mark.slow),
        pytest.param("lora", "AdamW", marks=pytest.mark.slow),
        pytest.param("whole", "SGD", marks=pytest.mark.slow),
    ],
)
def test_other_weights_and_states(train, optimizer):
    """Only some weights trained; optimizers with one state per weight, or none."""
    assert_goes_on(run_pairs(("zero1", "zero3"), (2,), train=train, optimizer=optimizer), 4)


def test_the_adapted_interface():
    """On equally many ranks: with the recall's loss a row's gradient depends on the rows read together with it."""
    memory = {"interface": "adapted", "recalled": 2, "recall_loss": 0.3}
    assert_goes_on(run_pairs(("zero1", "zero3"), (2,), **memory), 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_pairs_of_layouts(precision):
    assert_goes_on(run_pairs(precision=precision), 225, precision)
