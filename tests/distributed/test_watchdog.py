"""A hanging rank is killed from outside after the configured time, with a line that names it; the run can resume."""

import re
import time
from pathlib import Path

import pytest
from ranks import PROJECT
from tiny_recipe import STEPS, launch, make_materials, ranks_of, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics

SECONDS = 8
ALLOWED = rf"training\.hang_minutes allows {SECONDS} s"
SAID = rf"error: rank (\d) on \S+ made no progress for \d+ s after step 5; {ALLOWED}; (.*)\n(.*)\n"
LIMIT = ("--training.hang_minutes", str(SECONDS / 60))


@pytest.mark.parametrize("broken", ["rank_stopped", pytest.param("rank_hangs", marks=pytest.mark.slow)])
def test_a_rank_that_hangs_ends_the_run(tmp_path, broken):
    make_materials(tmp_path)
    recipe, output = write_recipe(tmp_path, 2), tmp_path / "run"
    path = f"{Path(__file__).with_name('breaks')}:{PROJECT}"
    code, printed = launch(recipe, output, *LIMIT, PYTHONPATH=path, HMT_DS_BREAK=broken)
    ended = time.time()
    assert code not in (0, 2, 75) and not ranks_of(output), printed
    last = (output / "metrics.jsonl").stat().st_mtime
    assert SECONDS < ended - last < SECONDS + 60
    found = {number: (what, frame) for number, what, frame in re.findall(SAID, printed)}
    if broken == "rank_stopped":
        assert found.keys() == {"1"} and found["1"][0] == "its process is stopped, and killed", printed
    else:
        what, frame = found["1"]
        assert what == "it is killed at" and "sitecustomize.py" in frame and "in <lambda>" in frame, printed

    code, printed = train(recipe, output, "--checkpoint.resume", "auto")
    assert code == 0 and "resumed from" in printed, printed
    assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_long_work_with_signs_of_life_is_let_alone(tmp_path):
    """A hundred steps that together, but not singly, take longer than the limit of six seconds."""
    make_materials(tmp_path)
    path = f"{Path(__file__).with_name('breaks')}:{PROJECT}"
    words = ("--training.hang_minutes", "0.1", "--training.steps", "100")
    code, printed = train(
        write_recipe(tmp_path, 2), tmp_path / "run", *words, PYTHONPATH=path, HMT_DS_BREAK="slow_rank"
    )
    assert code == 0 and "made no progress" not in printed, printed
    assert sum(row["seconds"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")) > 6
