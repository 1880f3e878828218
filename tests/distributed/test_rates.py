"""The logged learning rates are those that the steps used."""

import pytest
from tiny_recipe import make_materials, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics

HALF_TO_WHOLE = "{start_factor: 0.5, end_factor: 1.0, total_iters: 2}"


def test_rates_in_the_log(tmp_path):
    """The steps use 0.5, 0.75 and 1 times the learning rate of 1e-3."""
    make_materials(tmp_path)
    words = ("--training.steps", "3", "--schedule.name", "LinearLR", "--schedule.params", HALF_TO_WHOLE)
    code, printed = train(write_recipe(tmp_path, 2), tmp_path / "run", *words, ranks=1)
    assert code == 0, printed
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([0.0005, 0.00075, 0.001])
