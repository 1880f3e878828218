"""Kill a training run repeatedly at random times; its losses must equal those of an undisturbed run, bit for bit.

    python tests/distributed/kills.py [--kills 200] [--stages 1 2 3] [--seed 0] [--folder FOLDER]

Ranks are forked from this process, which has already imported everything, so a start takes a second. Saves are frequent
and slowed down, so that many kills hit one. Every second start writes its checkpoints in the background.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from ranks import free_port
from tiny_recipe import make_materials, write_recipe

from hmt_ds import train
from hmt_ds.checkpoint import files, newest_intact, save
from hmt_ds.checkpoint.files import list_checkpoints
from hmt_ds.reporting.metrics import read_metrics

STAGES = (1, 2, 3)
RANKS = 2
STEPS, EVERY, KEEP = 24, 2, 3
SLOW = 0.1  # extra seconds for writing a rank's share and for sealing
PATIENCE = 90.0  # seconds for a start


@dataclass
class Kills:
    """Counts of the kills of one ZeRO stage, by where they hit."""

    where: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    def __str__(self) -> str:
        return f"{self.where.total()} kills {dict(sorted(self.where.items()))}, {self.runs} runs to their end"


def forked(recipe: Path, output: Path, *more: str, slow: bool = True) -> list[int]:
    """Fork a run's ranks, which print to ``output.log``."""
    port = str(free_port())
    sys.stdout.flush()
    pids = []
    for rank in range(RANKS):
        if not (pid := os.fork()):
            be_a_rank(rank, port, [str(recipe), "--training.output", str(output), *more], slow)
        pids.append(pid)
    return pids


def be_a_rank(rank: int, port: str, words: list[str], slow: bool) -> NoReturn:
    """Train in a forked process like `python -m hmt_ds.train`."""
    code = 1
    try:
        out = os.open(f"{words[2]}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        sys.argv = ["train", *words]
        if slow:
            slow_down()
        code = train.main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def slow_down() -> None:
    """Slow down the writing of each rank's share and the step that makes a checkpoint visible."""
    write_file, flush_folder = files.write_file, files.flush_folder

    def slow_write(*arguments: Any) -> Any:
        time.sleep(SLOW / 2)
        return write_file(*arguments)

    def slow_flush(folder: Path) -> None:
        time.sleep(SLOW / 3)
        flush_folder(folder)

    save.write_file, files.flush_folder = slow_write, slow_flush


@contextmanager
def started(recipe: Path, output: Path, *more: str, slow: bool = True) -> Iterator[list[int]]:
    """A run's ranks, all killed at the end of the block."""
    pids = forked(recipe, output, *more, slow=slow)
    try:
        yield pids
    finally:
        for pid in pids:
            kill(pid)


def kill(pid: int) -> None:
    """Kill a rank that has not been reaped, and reap it."""
    with suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ended(pids: list[int], seconds: float) -> list[int] | None:
    """The exit codes once all ranks have ended, one has failed, or the time is up. Ranks are not reaped."""
    deadline = time.monotonic() + seconds
    while True:
        codes = [code for code in map(code_of, pids) if code is not None]
        if any(codes) or len(codes) == len(pids):
            return codes
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def code_of(pid: int) -> int | None:
    """A rank's exit code, negative for a signal; None while it runs."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def losses(output: Path) -> list[tuple[int, Any]]:
    """Step, loss and gradient norm of every line of the log."""
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(output / "metrics.jsonl")]


def undisturbed(recipe: Path, output: Path) -> list[tuple[int, Any]]:
    """The losses of an undisturbed run."""
    with started(recipe, output, slow=False) as pids:
        codes = ended(pids, PATIENCE)
    assert codes == [0] * RANKS, read_log(output)
    found = losses(output)
    assert [step for step, *_ in found] == list(range(1, STEPS + 1))
    return found


def wait_for_a_step(pids: list[int], output: Path, since: float) -> None:
    """Wait until this start has logged a step, or has ended."""
    known, log, deadline = 0, output / "metrics.jsonl", time.time() + PATIENCE
    while time.time() < deadline:
        if log.exists() and log.stat().st_mtime > since:
            rows = len(read_metrics(log))  # a start first truncates the log to the step that it resumes from
            if known and rows > known:
                return
            known = known or max(rows, 1)
        if any(code_of(pid) is not None for pid in pids):
            return
        time.sleep(0.005)
    raise AssertionError(f"no step after {PATIENCE} s: {Path(f'{output}.log').read_text()[-3000:]}")


def disturb(recipe: Path, output: Path, dice: random.Random, number: int) -> str | None:
    """Start or resume a run and kill it; return where the kill hit, or None if the run had finished."""
    before, began, said = newest(output), time.time(), len(read_log(output))
    background = str(bool(number % 2)).lower()
    with started(recipe, output, "--checkpoint.resume", "auto", "--checkpoint.background", background) as pids:
        early = dice.random() < 0.1
        delay = dice.uniform(0, 2.0) if early else dice.uniform(0, 1.0)
        if not early:
            wait_for_a_step(pids, output, began)
        if (codes := ended(pids, delay)) is not None:
            assert codes == [0] * RANKS, (codes, read_log(output)[-6000:])
            return check_resumed(read_log(output)[said:], before, begun=True)
        targets = pids if dice.random() < 0.5 else [dice.choice(pids)]
        for pid in targets:
            os.kill(pid, signal.SIGKILL)
        survivors_end([pid for pid in pids if pid not in targets])
    check_checkpoints(output, before)
    check_resumed(read_log(output)[said:], before)
    return f"{where(output, began)}, {'all' if len(targets) > 1 else 'one'}"


def survivors_end(pids: list[int], seconds: float = 0.5) -> None:
    """End the surviving ranks as a launcher does: SIGTERM first, then SIGKILL."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(code_of(pid) is None for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.005)


def newest(output: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((files.step_number(path) for path in list_checkpoints(output / "checkpoints")), default=0)


def check_checkpoints(output: Path, before: int) -> None:
    """Check that all visible checkpoints are intact, and that the newest one of before still exists."""
    damaged = {path.name: files.find_damage(path) for path in list_checkpoints(output / "checkpoints")}
    assert not any(damaged.values()), damaged
    said: list[str] = []
    found = newest_intact(output / "checkpoints", said.append)
    assert not said and (files.step_number(found) if found else 0) >= before, (said, found, before)


def read_log(output: Path) -> str:
    """The output of all starts of a run so far."""
    log = Path(f"{output}.log")
    return log.read_text() if log.exists() else ""


def check_resumed(printed: str, before: int, *, begun: bool = False) -> None:
    """Check that a start resumed from the newest checkpoint, if it got far enough to print that, and skipped none."""
    steps = [int(step) for step in re.findall(r"resumed from \S+, step (\d+)", printed)]
    assert "was skipped" not in printed, printed
    assert steps == ([before] if before else []) or not (steps or begun), (steps, before, printed)


def where(output: Path, began: float) -> str:
    """Whether the kill hit a save: this start left a partial folder."""
    partial = [
        path for path in (output / "checkpoints").glob(".step_*") if re.fullmatch(r"\.step_\d+\.partial", path.name)
    ]
    return "inside saving" if any(path.stat().st_mtime > began for path in partial) else "between saves"


def recipe_of(folder: Path, stage: int) -> Path:
    """A recipe with many steps and saves."""
    file = write_recipe(folder, stage)
    recipe = yaml.safe_load(file.read_text())
    recipe["training"]["steps"] = STEPS
    recipe["checkpoint"] = {"every": EVERY, "keep": KEEP}
    file.write_text(yaml.safe_dump(recipe))
    return file


def kill_often(folder: Path, stage: int, kills: int, seed: int) -> Kills:
    """Kill runs of one ZeRO stage until ``kills`` is reached; finish each run and compare its losses."""
    recipe, dice, done, starts = recipe_of(folder, stage), random.Random(f"{seed} {stage}"), Kills(), 0
    expected = undisturbed(recipe, folder / f"stage_{stage}_undisturbed")
    while done.where.total() < kills:
        output, hit = folder / f"stage_{stage}_{done.runs:03d}", "never"
        while hit and done.where.total() < kills:
            starts += 1
            if hit := disturb(recipe, output, dice, starts):
                done.where[hit] += 1
        if hit:
            finish(recipe, output)
        assert losses(output) == expected, f"{output}: other losses than those of the undisturbed run"
        assert newest(output) == STEPS
        done.runs += 1
        print(f"stage {stage} so far: {done}", file=sys.stderr, flush=True)
    return done


def finish(recipe: Path, output: Path) -> None:
    """Resume a run and let it finish."""
    before, said = newest(output), len(read_log(output))
    with started(recipe, output, "--checkpoint.resume", "auto", slow=False) as pids:
        codes = ended(pids, PATIENCE)
    assert codes == [0] * RANKS, (codes, read_log(output)[-6000:])
    check_resumed(read_log(output)[said:], before, begun=True)


def shares(kills: int, stages: int) -> list[int]:
    """The number of kills for each stage."""
    return [kills // stages + (number < kills % stages) for number in range(stages)]


def main() -> None:
    """Run the kills and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the runs stay, to be looked at")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        make_materials(folder)
        for stage, kills in zip(options.stages, shares(options.kills, len(options.stages)), strict=True):
            began = time.monotonic()
            print(f"stage {stage}: {kill_often(folder, stage, kills, options.seed)}", end="; ")
            print(f"all curves identical; {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
