"""The log of a run: lines with time, rank and level through a pipe, a progress bar in a terminal."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from hmt_ds.reporting.log import log_seconds
from hmt_ds.training.run_log import WarmUp

# three steps of a run of five, resumed after the second, with a warning after the first of them
SCRIPT = """
import logging, sys
from hmt_ds.reporting.log import start_log
from hmt_ds.reporting.progress import Progress

rank, every = map(int, sys.argv[1:])
start_log(rank)
progress = Progress(5, 2, every=every, shown=rank == 0)
for step in (3, 4, 5):
    progress.advance(8.0 / step, 12345.6, 1.5)
    if step == 3:
        logging.getLogger("hmt_ds.training.trainer").warning("step 3: something is odd")
progress.close()
"""
LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d rank (\d) (\w+) (.*)"


def through_a_pipe(rank: int = 0, every: int = 1) -> list[tuple[str, ...]]:
    """Rank, level and message of each line."""
    command = [sys.executable, "-c", SCRIPT, str(rank), str(every)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stdout and "\r" not in done.stderr
    matches = [re.fullmatch(LINE, line) for line in done.stderr.splitlines()]
    assert all(matches), done.stderr
    return [match.groups() for match in matches if match]


def in_a_terminal(rank: int = 0) -> str:
    """All that appears on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), "1"], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end of a pseudo-terminal is an error
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


def test_through_a_pipe_each_step_is_a_line():
    found = through_a_pipe()
    steps = [message for _, level, message in found if level == "INFO"]
    assert [rank for rank, _, _ in found] == ["0"] * 4
    assert steps[0] == "step 3/5 loss 2.667 12,346 tok/s 1.50 GiB, ? left"  # no other step tells how long one takes
    assert re.fullmatch(r"step 4/5 loss 2\.000 12,346 tok/s 1\.50 GiB, 00:0\d left", steps[1])
    assert steps[2].startswith("step 5/5 ") and steps[2].endswith(", 00:00 left")
    assert found[1] == ("0", "WARNING", "step 3: something is odd")


def test_fewer_lines_are_written_on_demand():
    steps = [message.split()[1] for _, level, message in through_a_pipe(every=4) if level == "INFO"]
    assert steps == ["4/5", "5/5"]  # the last step always


def test_other_ranks_only_warn():
    assert through_a_pipe(rank=3) == [("3", "WARNING", "step 3: something is odd")]


def test_in_a_terminal_there_is_a_bar():
    shown = in_a_terminal()
    assert "5/5 |" in shown and "loss 1.600 12,346 tok/s 1.50 GiB" in shown and "INFO" not in shown, shown
    (warning,) = re.findall(LINE, shown)
    assert warning[:2] == ("0", "WARNING") and warning[2].rstrip() == "step 3: something is odd"
    assert "|" not in in_a_terminal(rank=1)


def test_a_phase_is_logged_with_its_seconds(caplog):
    """One that fails is not: its error is what there is to read."""
    logger = logging.getLogger("hmt_ds.phases")
    caplog.set_level(logging.INFO)
    with log_seconds(logger, "saving step_000004"):
        pass
    with pytest.raises(ValueError), log_seconds(logger, "evaluating"):
        raise ValueError
    assert [record.getMessage() for record in caplog.records] == ["saving step_000004: 0.0 s"]


@pytest.mark.parametrize(
    ("steps", "messages"), [(3, ["compiling and measuring, in the first 3 steps: 33.0 s"]), (0, [])]
)
def test_compiling_is_a_phase_inside_the_first_steps(caplog, steps, messages):
    """The extra time of warm-up steps is logged once, and not at all if nothing is compiled."""
    caplog.set_level(logging.INFO)
    warm_up = WarmUp(steps)
    for seconds in (30.0, 2.0, 7.0, 2.0, 2.5, 9.0):
        warm_up.step_done(seconds)
    assert [record.getMessage() for record in caplog.records] == messages
