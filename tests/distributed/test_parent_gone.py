"""`hmt-ds` or its launcher killed, its terminal closed: no rank trains on alone, and what can be saved is saved."""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from ranks import PROJECT, cpu_environment
from tiny_recipe import (
    MARK,
    NO_COMPILER,
    command_of,
    finish,
    launchers_of,
    make_materials,
    processes_of,
    ranks_of,
    signal_at,
    start,
    train_alone,
    write_recipe,
)

from hmt_ds.distributed.stopping import STOPPED
from hmt_ds.reporting.metrics import read_metrics

ENDLESS = ("--training.steps", "100000", "--checkpoint.every", "100000")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Text and tokenizer of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    make_materials(folder)
    return folder


def wait_until_gone(output: Path, seconds: float = 30) -> None:
    """Wait until no process of a run is left."""
    deadline = time.monotonic() + seconds
    while found := processes_of(output):
        assert time.monotonic() < deadline, [one.cmdline() for one in found]
        time.sleep(0.2)


@pytest.mark.parametrize("target", [command_of, launchers_of])
def test_ranks_end_with_what_started_them(folder, target):
    recipe, output = write_recipe(folder, 1), folder / target.__name__
    with start(recipe, output, *ENDLESS) as process:
        signal_at(process, target, signal.SIGKILL, output, step=2)
        wait_until_gone(output)
        code, printed = finish(process)
    assert code and "ends: what started it is gone" in printed, printed
    assert "Traceback" not in printed and "ERROR]" not in printed, printed
    if target is launchers_of:
        assert "error: DeepSpeed's launcher ended before the ranks did (" in printed, printed


def test_a_killed_rank_is_named(folder):
    """The others tell what they lost, in a line each, wherever the loss reaches them."""
    recipe, output = write_recipe(folder, 1), folder / "killed"
    with start(recipe, output, *ENDLESS) as process:
        signal_at(process, lambda output: ranks_of(output)[1:], signal.SIGKILL, output, step=2)
        code, printed = finish(process)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code and "Traceback" not in printed and "ERROR]" not in printed, printed
    named = [
        line for line in errors if re.match(r"error: rank \d on \S+ was killed, or crashed, after step \d+$", line)
    ]
    assert len(named) == 1 and len(errors) <= 3, errors


def test_a_closed_terminal_saves_and_ends(folder):
    """The kernel sends SIGHUP to hmt-ds alone, and whatever is printed afterwards is an error."""
    recipe, output = write_recipe(folder, 1), folder / "hung_up"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hmt_ds.cli", "train", str(recipe), "--training.output", str(output), *ENDLESS]
    process = subprocess.Popen(
        command,
        env=cpu_environment(**{MARK: str(output)}, **NO_COMPILER),
        cwd=PROJECT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        log = output / "metrics.jsonl"
        while not (log.exists() and any(row["step"] >= 2 for row in read_metrics(log))):
            assert process.poll() is None
            if select.select([ours], [], [], 0.1)[0]:
                os.read(ours, 65536)  # a full terminal would stop the run
        os.close(ours)
        assert process.wait(60) == STOPPED
    finally:
        for one in processes_of(output):
            one.kill()
    steps = len(read_metrics(log))
    assert (output / "checkpoints" / "latest").read_text() == f"step_{steps:06d}"


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_reaches_ranks_unless_nohup_ignores_it(folder, ignored):
    recipe, output = write_recipe(folder, 1), folder / f"nohup{ignored}"
    words = ("--training.steps", "12")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with start(recipe, output, *words, ranks=1) as process:
            signal_at(process, ranks_of, signal.SIGHUP, output, step=1)
            code, printed = finish(process)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert code == (0 if ignored else STOPPED), printed


def test_ranks_of_other_launchers_end_too(folder):
    """Such as those of srun or torchrun: here the server that forks ranks plays that part, and lives on."""
    recipe, output = write_recipe(folder, 1), folder / "alone"
    with train_alone(recipe, output, *ENDLESS, ranks=1, HMT_DS_COMMAND=f"{os.getpid()} 1") as run:
        code, printed = finish(run, timeout=60)
    assert code == 1 and "rank 0 ends: what started it is gone" in printed, printed
