"""A disk that fills up during a save, and a stop signal during a background save."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_recipe import STEPS, finish, make_materials, signal_at, train, train_alone, write_recipe

from hmt_ds.checkpoint import newest_intact
from hmt_ds.distributed.stopping import STOPPED
from hmt_ds.reporting.metrics import read_metrics

RESUME = ("--checkpoint.resume", "auto")
# in place of sitecustomize: each rank's share takes three seconds
SLOW = """
import os, time
if os.environ.get("RANK"):
    from hmt_ds.checkpoint import save
    right = save.write_share
    save.write_share = lambda *arguments: (time.sleep(3), right(*arguments))
"""


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small tmpfs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk of its own can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def losses(output: Path) -> list[tuple[int, float]]:
    """Step and loss of every row of the metrics."""
    return [(row["step"], row["loss"]) for row in read_metrics(output / "metrics.jsonl")]


def fill(folder: Path, left: int) -> Path:
    """Write a file that leaves ``left`` bytes free on a disk."""
    file = folder / "of_somebody_else"
    file.write_bytes(bytes(shutil.disk_usage(folder).free - left))
    return file


@pytest.mark.parametrize("background", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_a_disk_that_fills_up(tmp_path, disk, background):
    """The first save fits, the second and last do not: a warning, then an error. With room again the run resumes."""
    make_materials(tmp_path)
    recipe, options = write_recipe(tmp_path), ("--checkpoint.background", background)
    assert train(recipe, tmp_path / "whole")[0] == 0
    size = sum(file.stat().st_size for file in (tmp_path / "whole/checkpoints/step_000004").iterdir())
    other = fill(disk, int(1.6 * size))
    output = disk / "run"

    code, printed = train(recipe, output, *options)
    said = [line for line in printed.splitlines() if "was not written" in line]
    assert code != 0 and len(said) == 2 and "Traceback" not in printed, printed
    assert " rank 0 WARNING " in said[0] and "step_000008 was not written: rank " in said[0], printed
    assert said[1].startswith("error: ") and f"step_{STEPS:06d} was not written: rank " in said[1], printed
    assert all("No space left on device" in line for line in said), printed
    assert losses(output) == losses(tmp_path / "whole")
    assert newest_intact(output / "checkpoints", pytest.fail) == output / "checkpoints/step_000004"
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["latest", "step_000004"]

    other.unlink()
    code, printed = train(recipe, output, *options, *RESUME)
    assert code == 0 and "step 4" in printed, printed
    assert losses(output) == losses(tmp_path / "whole")
    assert newest_intact(output / "checkpoints", pytest.fail) == output / f"checkpoints/step_{STEPS:06d}"


@pytest.mark.slow
def test_a_disk_without_room_for_the_log(tmp_path, disk):
    """A log that cannot be written gives one warning; training continues; the missing last checkpoint is an error."""
    make_materials(tmp_path)
    fill(disk, 12 * 2**10)  # the recipe, and the beginning of the log
    code, printed = train(write_recipe(tmp_path), disk / "run", "--training.steps", str(2 * STEPS))
    warnings = [line for line in printed.splitlines() if "WARNING metrics" in line]
    assert len(warnings) == 1 and "No space left on device" in warnings[0], printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and f"step_{2 * STEPS:06d} was not written" in errors[0], printed
    assert "Traceback" not in printed and f"{2 * STEPS}/{2 * STEPS}" in printed, printed
    assert [step for step, _ in losses(disk / "run")] == list(range(1, 1 + len(losses(disk / "run"))))


def test_told_to_stop_while_a_save_is_written(tmp_path):
    """Both that save and the last one are complete."""
    make_materials(tmp_path)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/sitecustomize.py").write_text(SLOW)
    recipe, output = write_recipe(tmp_path), tmp_path / "run"
    options = ("--checkpoint.background", "true")
    with train_alone(recipe, output, *options, PYTHONPATH=str(tmp_path / "slow")) as run:
        signal_at(run, lambda _: run.ranks, signal.SIGTERM, output, step=5)
        assert not (output / "checkpoints/step_000004").exists()  # it is still being written
        code, printed = finish(run)
    assert code == STOPPED and "stopped after step" in printed, printed
    stopped = len(losses(output))
    assert 5 <= stopped < STEPS
    checkpoints = output / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_000004", f"step_{stopped:06d}"]
    for step in (stopped, 4):
        assert newest_intact(checkpoints, pytest.fail) == checkpoints / f"step_{step:06d}"
        shutil.rmtree(checkpoints / f"step_{step:06d}")
