"""`hmt-ds status` on folders made by hand: every state, damaged and missing files, other machines."""

import json
import os
import sys
import time

import pytest

from hmt_ds import cli
from hmt_ds.checkpoint.run_lock import this_process
from hmt_ds.overview.run_folder import FRESH, RunFolder
from hmt_ds.overview.status import QUIET, Status
from hmt_ds.reporting.history import History, read_history

RECIPE = "training: {steps: 100, hang_minutes: 3}\ncheckpoint: {every: 25}\n"


@pytest.fixture
def run(tmp_path):
    """A run of 100 steps that has taken 40."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    rows = [
        {"step": n, "loss": 5 - n / 20, "seconds": 2.0, "tokens_per_second": 1000.0 + n, "peak_memory_gib": 1.5}
        for n in range(1, 41)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write_lock(folder, **changes) -> None:
    """Write the lock of a living process of this machine, or with changes of another one."""
    text = json.dumps(this_process() | changes)
    (folder / "run.abc.lock").write_text(f"{text}\nholds 00000000000000000007\n")


def write_note(folder, rank: int, age: float = 0.0, **changes) -> None:
    """Write the note of a rank."""
    (folder / "ranks").mkdir(exist_ok=True)
    note = {"rank": rank, "host": "node1", "pid": 1, "after": "step 40", "silent": 1.0, "stopped": False}
    file = folder / "ranks" / f"rank_{rank:05d}.json"
    file.write_text(json.dumps(note | changes))
    os.utime(file, (time.time() - age,) * 2)


def lines_of(folder) -> str:
    return "\n".join(Status(RunFolder(folder)).lines())


def test_running(run):
    write_lock(run)
    History(run).write("start", 0, environment={"ranks": 2})
    for rank in range(3):  # the third is left by an earlier start on more ranks
        write_note(run, rank)
    History(run).write("warning", 12, text="loss spike: 9")
    said = lines_of(run)
    assert f"run          {run}: running, process {os.getpid()} on " in said
    assert "step         40 of 100 (40%), 02:00 left" in said  # 60 steps of 2 s
    assert "loss         3.475 (mean of 20 logged steps, 4.475 before)" in said
    assert "speed        1,030 tokens/s per rank, 2.00 s a step, 1.50 GiB on rank 0" in said
    assert "checkpoint   none yet" in said and "ranks        2 of 2 make progress, on 1 machine" in said
    assert "warning      step 12: loss spike: 9" in said


@pytest.mark.parametrize(
    ("changes", "age", "expected"),
    [
        ({"stopped": True, "silent": 7.0}, 0, "its process is stopped, for 7 s after step 40"),
        ({"silent": 61.0}, 0, "no progress for 61 s after step 40"),
        ({}, QUIET + 1, "its watchdog has not written for 31 s: the machine is down"),
    ],
)
def test_stuck(run, changes, age, expected):
    write_lock(run)
    write_note(run, 0)
    write_note(run, 1, age, **changes)
    found = Status(RunFolder(run))
    assert found.state == "stuck" and not found.ok and len(found.stuck) == 1
    assert f"stuck        rank 1 on node1: {expected}" in lines_of(run)
    assert "after 3 minutes of silence the run is killed" in lines_of(run)


def test_slow_steps_are_not_stuck(run):
    """A step that takes two minutes may be silent for two minutes."""
    row = {"step": 41, "loss": 1.0, "seconds": 120.0, "tokens_per_second": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    write_lock(run)
    write_note(run, 0, silent=130.0)
    assert Status(RunFolder(run)).state == "running"


def test_a_lock_of_another_machine_counts_while_it_changes(run):
    write_lock(run, machine="other", host="node7")
    assert Status(RunFolder(run)).state == "running"
    os.utime(run / "run.abc.lock", (time.time() - FRESH - 1,) * 2)
    assert Status(RunFolder(run)).state == "died"


@pytest.mark.parametrize(
    ("last", "state", "ok"),
    [("end", "finished", 1), ("stop", "stopped", 1), ("failed", "failed", 0), ("checkpoint", "died", 0)],
)
def test_ended(run, last, state, ok):
    write_lock(run, ticks=1)  # of a dead process
    History(run).write("start", 0, environment={"ranks": 1})
    History(run).write(last, 40, text="too many bad steps")
    found = Status(RunFolder(run))
    assert (found.state, found.ok) == (state, bool(ok)) and "ranks " not in lines_of(run)
    assert ("failed: too many bad steps" in lines_of(run)) == (last == "failed")
    assert ("--checkpoint.resume auto" in lines_of(run)) == (last != "end")


def test_runs_without_a_history(run):
    assert Status(RunFolder(run)).state == "died"
    (run / "recipe.yaml").write_text("training: {steps: 40}\n")
    assert Status(RunFolder(run)).state == "finished"
    (run / "metrics.jsonl").unlink()
    assert Status(RunFolder(run)).state == "not started"
    assert "step         0 of 40 (0%)" in lines_of(run)


def test_damaged_files(run):
    checkpoint = run / "checkpoints" / "step_000025"
    checkpoint.mkdir(parents=True)
    History(run).write("start", 0, environment={"ranks": 1})
    with (run / "history.jsonl").open("a") as file:
        file.write('{"kind": "half\n[]\n')
    (run / "ranks").mkdir()
    (run / "ranks" / "rank_00000.json").write_text('{"rank"')
    said = lines_of(run)
    assert "checkpoint   step 25, 00:00 ago, 0.0 MB; 1 kept" in said
    assert "damaged      checkpoint of step 25: manifest.json cannot be read" in said and len(read_history(run)) == 1


def test_a_full_disk_does_not_end_the_run(tmp_path, caplog):
    history = History(tmp_path / "nowhere")
    history.write("start", 0)
    history.write("end", 1)
    assert caplog.text.count("history.jsonl cannot be written: No such file or directory; training goes on") == 1
    History(tmp_path, shown=False).write("start", 0)
    assert not (tmp_path / "history.jsonl").exists()


def test_the_command(monkeypatch, capsys, run):
    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hmt-ds", "status", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    assert command(str(run))[0] == 1
    assert command(str(run / "nowhere")) == (
        2,
        "",
        f"error: {run / 'nowhere'}: no such run: name the folder of a run (training.output)\n",
    )
    (run / "recipe.yaml").unlink()
    assert command(str(run)) == (
        2,
        "",
        f"error: {run}: not a run, it has no recipe.yaml: name the folder of a run (training.output)\n",
    )
