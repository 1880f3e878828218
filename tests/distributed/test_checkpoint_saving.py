"""Failing saves and background saves on two ranks. run_ranks starts this file on every rank."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import executor_of, losses
from ranks import run_ranks

from hmt_ds.checkpoint import CheckpointError, Retention, RunPosition, Saver, load_checkpoint, newest_intact, save
from hmt_ds.checkpoint.files import MANIFEST
from hmt_ds.distributed.process_group import end_process, join, rank
from hmt_ds.parallel.zero import ZeroExecutor

FULL = OSError(28, "No space left on device\nand more that a library has to say")


def try_to_save(executor: ZeroExecutor, folder: Path, step: int) -> str:
    """Save; return the error, or None."""
    saver = Saver(folder, {}, Retention())
    try:
        saver.begin(executor, RunPosition(step=step))
        saver.finish()
    except CheckpointError as error:
        return str(error)
    return ""


def fail_on(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a full disk on one rank."""

    def write_share(*arguments: Any) -> None:
        raise FULL

    if rank() == failing:
        monkeypatch.setattr(save, "write_share", write_share)


def failures(task: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A save, saves that fail on some rank, and another save; return the errors of each rank and the losses."""
    executor, folder = executor_of("zero2", {}, device), Path(task["folder"])
    told = [try_to_save(executor, folder, 1)]
    found = losses(executor, 0, 1)
    for step, failing in enumerate((0, 1), start=2):
        with pytest.MonkeyPatch.context() as monkeypatch:
            fail_on(failing, monkeypatch)
            told.append(try_to_save(executor, folder, step))
        found += losses(executor, step - 1, 1)
    told.append(try_to_save(executor, folder / "a_file", 4))
    left = sorted(path.name for path in folder.iterdir())
    intact = newest_intact(folder, print)
    told.append(try_to_save(executor, folder, 5))
    return {"told": told, "losses": found, "left": left, "intact": str(intact)}


def undisturbed(task: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The losses of a run without saves."""
    return {"losses": losses(executor_of("zero2", {}, device), 0, 3)}


def in_background(task: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Save the same state in the foreground, and in the background during training steps with a delayed writer."""
    executor, folder, go = executor_of(task["config"], {}, device), Path(task["folder"]), threading.Event()
    losses(executor, 0, 2)
    Saver.finish(begun(executor, folder / "foreground", background=False))
    right = save.write_share

    def held_up(*arguments: Any) -> None:
        assert go.wait(60)
        right(*arguments)

    save.write_share = held_up
    saver = begun(executor, folder / "background", background=True)
    unfinished = saver.written() == 0
    expected = losses(executor, 2, 2)
    torch.rand(3)  # the generators go on, too
    go.set()
    path = saver.finish()
    assert path is not None
    resumed = executor_of(task["config"], {}, device)
    load_checkpoint(resumed, path)
    return {"unfinished": unfinished, "expected": expected, "found": losses(resumed, 2, 2)}


def begun(executor: ZeroExecutor, folder: Path, *, background: bool) -> Saver:
    """A Saver that has begun a save."""
    saver = Saver(folder, {"key": "value"}, Retention(), background=background)
    saver.begin(executor, RunPosition(2, 77, {"epoch": 0}))
    return saver


def be_a_rank(task: dict[str, Any], result: Path) -> None:
    """Run the named task; return the results of both ranks."""
    found = globals()[task["do"]](task, join(timeout_minutes=2))
    both: list[Any] = [None, None]
    torch.distributed.all_gather_object(both, found)
    if rank() == 0:
        result.write_text(json.dumps(both))
    end_process(0)


def test_all_ranks_agree_that_one_has_failed(tmp_path):
    """Every rank reports the failed rank and reason in one line; older checkpoints stay, no partial one does."""
    (tmp_path / "a_file").write_text("")
    one, other = run_ranks("test_checkpoint_saving.py", {"do": "failures", "folder": str(tmp_path)}, timeout=120)
    assert one == other
    first, disk_0, disk_1, no_folder, last = one["told"]
    assert first == last == ""
    assert (
        "step_000002 was not written: rank 0: [Errno 28] No space left on device; earlier checkpoints are unchanged"
        in disk_0
    )
    assert (
        "step_000003 was not written: rank 1: [Errno 28] No space left on device; earlier checkpoints are unchanged"
        in disk_1
    )
    assert "rank 0: [Errno 17] File exists" in no_folder
    assert not any("\n" in text for text in one["told"])
    assert one["left"] == ["a_file", "latest", "step_000001"] and one["intact"].endswith("step_000001")
    assert (tmp_path / "latest").read_text() == "step_000005"
    plain, _ = run_ranks("test_checkpoint_saving.py", {"do": "undisturbed"}, timeout=120)
    assert one["losses"] == plain["losses"]


@pytest.mark.parametrize("config", ["zero0", "zero1", "zero3"])
def test_steps_meanwhile_do_not_enter_the_file(tmp_path, config):
    """A background save during training steps writes the same files, bit for bit, as a foreground save."""
    task = {"do": "in_background", "folder": str(tmp_path), "config": config}
    for row in run_ranks("test_checkpoint_saving.py", task, timeout=120):
        assert row["unfinished"] and row["found"] == row["expected"]
    one, other = tmp_path / "foreground/step_000002", tmp_path / "background/step_000002"
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir()) and len(names) == 6 and MANIFEST in names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


if __name__ == "__main__" and "RANK" in os.environ:
    be_a_rank(json.loads(sys.argv[1]), Path(sys.argv[2]))
