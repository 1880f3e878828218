"""Every ZeRO stage gives the gradients and weights of one process. zero_gradients.py prints all figures."""

from typing import Any

import pytest
import torch
from long_sums import LONG, SHORT, Depth
from ranks import run_ranks
from tiny_runs import DEPTH, MEMORY, ROWS, L, windows
from zero_cases import (
    ACCUMULATION,
    ACCUMULATION_SAMPLE,
    ADAPTED_GRID,
    ADAPTED_SAMPLE,
    BF16,
    BF16_SAMPLE,
    COMPILED,
    CONFIGS,
    COUNTED,
    FLOAT64,
    GRID,
    POLICIES,
    SAMPLE,
    Case,
)
from zero_gradients import CLIPPING, run_cases


def check_fp32(row: dict[str, Any]) -> None:
    assert row["gradient"] < 1e-5, row
    assert row["weights"] < 1e-5, row
    assert row["loss"] < 1e-5 and row["norm"] < 1e-5 and row["recall_loss"] < 1e-5, row
    assert row["moved"] == [] and row["still"] == [], row
    assert row["asleep"] == [], row


def check_bf16(row: dict[str, Any]) -> None:
    """bf16 has 8 bits: 0.4% per operation. The gradient as a whole was 0.6 to 0.9% off, and that of recall's weights,
    which is a small difference of large terms, up to 9%."""
    assert 1e-4 < row["whole_gradient"] < 0.02, row
    assert row["first_gradient"] < 0.15 and row["loss"] < 1e-3 and row["norm"] < 0.01, row


def test_windows_hold_what_is_hard():
    """The windows have the properties that make the comparison below meaningful."""
    every = windows(0, 1)
    lengths = torch.cat([window.lengths for window in every], dim=1)
    starts = torch.cat([window.starts for window in every], dim=1)
    assert (starts & (lengths > 0))[:, 1:DEPTH].any()  # documents begin in the middle of a window
    assert (lengths[2:, 2 * DEPTH :] == 0).all() and (lengths[:2, 2 * DEPTH :] > 0).any()  # the second rank is dry
    assert {1, 3, L - 1, L} <= set(lengths.flatten().tolist()) and len(lengths) == ROWS
    assert not every[1].starts[:, 0].all()  # memory is carried from window to window
    assert MEMORY.cached_memories < DEPTH


def test_sample_has_every_stage_and_every_way():
    """The sample has every value of every option; the slow tests add combinations."""
    ways = {"segment", "step"}
    assert {(case.config, case.reduction) for case in SAMPLE} == {(config, way) for config in CONFIGS for way in ways}
    assert {case.train for case in SAMPLE} == {"whole", "frozen", "lora"}
    assert {case.recompute for case in SAMPLE} == {"none", "selective", "segment", "segment+layer"}
    # leaves are put where each segment is reduced at stage 3, and nowhere else
    leaves = {c.leaf_layers for c in SAMPLE if c.config.startswith("zero3") and c.reduction == "segment"}
    assert leaves == {1, 2}
    assert {1, DEPTH} < {case.summary_batch for case in SAMPLE} and any(DEPTH % c.summary_batch for c in SAMPLE)
    for sample, every in ((SAMPLE, GRID + POLICIES), (ACCUMULATION_SAMPLE, ACCUMULATION), (BF16_SAMPLE, BF16)):
        assert {case.reduction for case in sample} == ways
        assert {case.config for case in every} == set(CONFIGS) and {case.reduction for case in every} == ways
    assert set(ACCUMULATION_SAMPLE) <= set(ACCUMULATION) and set(BF16_SAMPLE) <= set(BF16)


@pytest.fixture(scope="module")
def rows(request) -> dict[Case, dict[str, Any]]:
    """The results of all selected cases, from one start of two ranks."""
    own = [item for item in request.session.items if item.path == request.path and "rows" in item.fixturenames]
    cases = list(dict.fromkeys(item.callspec.params["case"] for item in own))
    return dict(zip(cases, run_cases(cases), strict=True))


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_gradients_and_weights(rows, case):
    check_fp32(rows[case])
    assert case.train == "frozen" or max(rows[case]["norms"]) > CLIPPING  # so clipping took part


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_as_much_is_kept_as_was_asked_for(rows, case):
    """Layer calls match the policy; gradients would be right whatever was kept or recomputed."""
    assert rows[case]["calls"] == [case.calls()] * 3, rows[case]


@pytest.mark.parametrize("case", ADAPTED_SAMPLE, ids=str)
def test_adapted_interface(rows, case):
    """Gradients also of the recall's loss, whose negatives are the memories of the rows of one rank."""
    check_fp32(rows[case])
    assert rows[case]["calls"] == [case.calls()] * len(rows[case]["calls"]), rows[case]
    assert case.recall_loss == 0 or max(rows[case]["recall_losses"]) > 0.1, rows[case]


@pytest.mark.parametrize("case", ACCUMULATION_SAMPLE, ids=str)
def test_accumulation_of_two_windows(rows, case):
    check_fp32(rows[case])


@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_loss_of_answers_and_weighted_loss(rows, case):
    """Also where a rank or a whole window has no label."""
    check_fp32(rows[case])


@pytest.mark.parametrize("case", FLOAT64, ids=str)
def test_in_float64(rows, case):
    """What is left is of the few numbers that are float32 whatever the model's type, such as the recall's weights."""
    row = rows[case]
    assert row["gradient"] < 1e-6 and row["weights"] < 1e-6 and row["loss"] < 1e-6 and row["norm"] < 1e-6, row
    assert row["moved"] == row["still"] == [], row


@pytest.mark.parametrize("case", BF16_SAMPLE, ids=str)
def test_bf16_is_within_its_own_rounding(rows, case):
    check_bf16(rows[case])


def check_sums(depths: list[Depth]) -> None:
    for row in run_ranks("long_sums.py", depths, timeout=900):
        assert row["executor"] < 0.01 and row["executor_worst"][0] < 0.01, row
        assert row["bf16"] > {64: 0.02, 1024: 0.5}[row["segments"]], row  # so this test would see it


def test_sums_over_segments_are_in_float32():
    """64 and 1024 equal segments; DeepSpeed's default would sum them in bf16."""
    check_sums(SHORT)


@pytest.mark.slow
def test_sums_over_segments_are_in_float32_everywhere():
    check_sums(LONG)


@pytest.mark.slow
def test_compiled_layers():
    """Also in ZeRO-3's leaf modules with reduction segment: hooks run around a leaf, not in it."""
    for row in run_cases(COMPILED, timeout=1200):
        check_fp32(row)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["segment", "step"])
def test_hierarchical_partitions(reduction):
    """DeepSpeed's hpZ on two nodes of two ranks. (It can be set up once in a process.)"""
    check_fp32(*run_cases([Case("zero3_hpz", reduction=reduction, summary_batch=2, leaf_layers=2)], ranks=4))


@pytest.mark.slow
def test_whole_grid():
    cases = [*GRID, *POLICIES, *ACCUMULATION, *BF16, *ADAPTED_GRID]
    for case, row in zip(cases, run_cases(cases, timeout=1800), strict=True):
        (check_bf16 if case.precision == "bf16" else check_fp32)(row)
        assert row["calls"] == [case.calls()] * len(row["calls"]), row
