"""A slow rank is reported, whichever rank waits for it."""

import re
import socket
from pathlib import Path

import pytest
from ranks import PROJECT
from tiny_recipe import make_materials, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics
from hmt_ds.training.stragglers import STEPS

SLOW = {"PYTHONPATH": f"{Path(__file__).with_name('breaks')}:{PROJECT}", "HMT_DS_BREAK": "slow_rank"}


@pytest.mark.parametrize("stage", [3, pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_slow_rank_is_named(tmp_path, stage):
    """It is reported once, and not in the first steps, which compile and measure."""
    make_materials(tmp_path)
    output, steps = tmp_path / "run", ("--training.steps", str(3 * STEPS))
    code, printed = train(write_recipe(tmp_path, stage), output, *steps, **SLOW)
    assert code == 0, printed
    (line,) = re.findall(r"step (\d+): slow: a step takes rank 1 on (\S+) ([\d.]+) s \(([\d.]+) times\)", printed)
    assert line[0] == str(2 * STEPS) and line[1] == socket.gethostname() and float(line[2]) > 0.06, line
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["slowest_rank"] for row in rows] == [None] * (2 * STEPS - 1) + [1] * (STEPS + 1)
    assert rows[-1]["slowest_ratio"] > 1.5
