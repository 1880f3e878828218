"""What is read of a checkpoint before ranks start: never a progress.json that has changed since it was written."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hmt_ds.checkpoint.files import RUN_STATE, newest_state, write_json, write_manifest
from hmt_ds.launch import start
from hmt_ds.launch.start import ranks_of
from hmt_ds.reporting.metrics import Metrics, read_metrics
from hmt_ds.training.elastic import global_rows


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with two checkpoints, written by 4 and by 2 ranks."""
    for step, ranks in ((1, 4), (2, 2)):
        folder = tmp_path / "checkpoints" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        state = {"step": step, "world_size": ranks, "stages": 1, "rows_per_rank": 12 // ranks}
        write_manifest(folder, {RUN_STATE: write_json(folder / RUN_STATE, state)})
    return tmp_path


def test_the_newest_intact_one_counts(run):
    assert ranks_of(run) == 2 and ranks_of(run / "no_run") is None
    assert newest_state(run / "checkpoints")["step"] == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.replace('"stages": 1', '"stages": 0'),
        lambda state: state.replace('"world_size": 2', '"world_size": 64'),
        lambda state: state[:-1],
        lambda state: "[" * 100_000,
        lambda state: "",
    ],
    ids=["zero", "other", "short", "deep", "empty"],
)
def test_a_changed_one_is_passed_over(run, damage):
    file = run / "checkpoints" / "step_000002" / RUN_STATE
    file.write_text(damage(file.read_text()))
    assert ranks_of(run) == 4 and newest_state(run / "checkpoints")["step"] == 1
    recipe: Any = SimpleNamespace(
        checkpoint=SimpleNamespace(resume="auto"), training=SimpleNamespace(output=str(run)), pipeline=None
    )
    assert global_rows(recipe) == 12
    (run / "checkpoints" / "step_000001" / "manifest.json").unlink()
    assert ranks_of(run) is None and global_rows(recipe) is None


@pytest.mark.parametrize("line", [b"[1]", b"{}", b'{"step": "x"}', b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_damaged_line_of_the_log_ends_it(tmp_path, line):
    """Here and when a run goes on: neither costs a traceback, nor the lines before."""
    rows = [json.dumps({"step": step, "loss": 1.0}).encode() for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*rows[:2], line, rows[2], b""]))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    Metrics(tmp_path, 3).write({"step": 4})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 4]


@pytest.mark.parametrize(
    ("trained", "gpus", "cores", "stages", "ranks"),
    [(64, 0, 2, 1, 2), (64, 8, 96, 1, 8), (4, 8, 96, 1, 4), (64, 6, 96, 4, 4), (8, 0, 2, 4, 4), (2, 0, 2, 1, 2)],
)
def test_a_run_is_evaluated_on_what_this_machine_has(tmp_path, monkeypatch, trained, gpus, cores, stages, ranks):
    monkeypatch.setattr(start, "ranks_of", lambda source: trained)
    monkeypatch.setattr(start, "number_of_gpus", lambda: gpus)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert start.evaluating_ranks(tmp_path, stages) == ranks
