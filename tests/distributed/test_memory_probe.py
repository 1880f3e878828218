"""Probes of the memory while training, at ZeRO-2, ZeRO-3 and on a pipeline: they change no number of the run."""

import pytest
from tiny_recipe import STEPS, make_materials, train, write_recipe

from hmt_ds.reporting.history import read_history
from hmt_ds.reporting.metrics import read_metrics

SAME = ("loss", "gradient_norm", "recall_distance")


@pytest.mark.parametrize(("stage", "stages"), [(2, 1), (3, 1), (1, 2)])
def test_probes_change_nothing(tmp_path, stage, stages):
    """Losses and norms are those of the same run without probes, bit for bit, with dropout and carried memories."""
    make_materials(tmp_path)
    rows = {}
    for share in ("0", "1"):
        output = tmp_path / share
        code, printed = train(
            write_recipe(tmp_path, stage), output, "--logging.memory_probe", share, "--pipeline.stages", str(stages)
        )
        assert code == 0, printed
        rows[share] = [[row[name] for name in SAME] for row in read_metrics(output / "metrics.jsonl")]
    assert rows["0"] == rows["1"] and len(rows["1"]) == STEPS
    probes = [event for event in read_history(tmp_path / "1") if event["kind"] == "probe"]
    assert len(probes) >= 2  # on a loaded machine fewer fit into their share of the time
    assert all(event["cost"] is not None and event["seconds"] > 0 for event in probes)
    assert not [event for event in read_history(tmp_path / "0") if event["kind"] == "probe"]
