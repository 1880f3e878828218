"""`hmt-ds status` beside a run: while it trains, while a rank is stopped, after it was killed, resumed, at its end."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from ranks import PROJECT
from tiny_recipe import STEPS, make_materials, ranks_of, signal_at, start, train, with_luck, write_recipe

from hmt_ds.distributed.watchdog_process import NOTE_SECONDS
from hmt_ds.reporting.history import read_history

ENDLESS = ("--training.steps", "100000", "--checkpoint.keep", "2")


def status(run: Path) -> tuple[int, dict[str, list[str]]]:
    """Run the command; return its exit code, and the texts of its lines by their first word."""
    words = [sys.executable, "-m", "hmt_ds", "status", str(run)]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, cwd=PROJECT)
    assert not ran.stderr
    found: dict[str, list[str]] = {}
    for line in ran.stdout.splitlines():
        found.setdefault(line[:12].strip(), []).append(line[13:])
    return ran.returncode, found


def test_a_run_with_a_stopped_rank_that_is_killed_and_resumed(tmp_path):
    make_materials(tmp_path)
    recipe, output = write_recipe(tmp_path, 2), tmp_path / "run"
    with start(recipe, output, *ENDLESS) as process:
        signal_at(process, lambda _: [], signal.SIGCONT, output, 5)
        time.sleep(NOTE_SECONDS + 1)  # for a first note of each rank
        code, found = status(output)
        assert code == 0 and ": running, process " in found["run"][0], found
        assert " of 100,000 (" in found["step"][0] and " left" in found["step"][0]
        assert found["ranks"] == ["2 of 2 make progress, on 1 machine"] and "stuck" not in found
        assert found["checkpoint"][0].startswith("step ") and "2 kept, the next after step " in found["checkpoint"][0]
        assert "tokens/s per rank" in found["speed"][0]

        second = sorted(ranks_of(output), key=lambda one: int(one.environ()["RANK"]))[1]
        second.suspend()
        time.sleep(NOTE_SECONDS + 2)
        code, found = status(output)
        assert code == 1 and ": stuck" in found["run"][0] and found["ranks"] == ["1 of 2 make progress, on 1 machine"]
        (line,) = found["stuck"]
        assert line.startswith("rank 1 on ") and "its process is stopped, for " in line and " after " in line
        for one in ranks_of(output):
            with_luck(one.kill)
        process.wait()
    code, found = status(output)
    assert code == 1 and found["run"] == [f"{output}: died"]
    assert found["next"] == [f"hmt-ds train {output} --checkpoint.resume auto"] and "ranks" not in found


def test_the_history_of_a_finished_run(tmp_path):
    make_materials(tmp_path)
    recipe, output = write_recipe(tmp_path, 2), tmp_path / "run"
    for steps in (4, STEPS):
        more = ("--training.steps", str(steps), "--checkpoint.resume", "auto", "--checkpoint.rate_jump", "true")
        code, printed = train(recipe, output, *more)
        assert code == 0, printed
    events = [(event["kind"], event["step"]) for event in read_history(output)]
    first = [("start", 0), ("checkpoint", 4), ("evaluation", 4), ("end", 4)]
    assert events == [*first, ("start", 4), ("checkpoint", 8), ("checkpoint", 12), ("evaluation", 12), ("end", 12)]
    begun = read_history(output)[0]["environment"]
    assert begun["ranks"] == 2 and list(begun["machines"].values()) == [2] and begun["devices"] == ["CPU"]
    assert begun["packages"]["torch"] and json.dumps(begun)
    code, found = status(output)
    assert code == 0 and found["run"] == [f"{output}: finished"] and found["step"] == ["12 of 12 (100%)"]
    assert found["next"] == [f"hmt-ds report {output}"] and not list((output / "ranks").glob("rank_*"))
