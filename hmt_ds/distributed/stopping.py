"""Record stop signals, stop all ranks together, and write the exit code for launch scripts."""

import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch

from hmt_ds.distributed.process_group import all_reduce_sum, rank

STOPPED = 75  # exit code: everything is saved, the run can be started again; EX_TEMPFAIL of sysexits.h


class Stopped(Exception):
    """Raised on all ranks after one of them received a stop signal (Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP).

    The message is for the user.
    """


class StopSignals:
    """Records stop signals: Ctrl-C, SIGTERM (preemption), SIGUSR1 (the time limit is near) and SIGHUP (logged out).

    Attributes:
        received: 1 after a signal, else 0; ranks all-reduce it to stop together.
    """

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self.note)
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun sends SIGTERM to ranks that wait for a failed one
            signal.signal(signal.SIGTERM, self.note)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Record a stop signal without interrupting the current step; the handler given to Python's ``signal.signal``.

        Args:
            number: number of the signal.
            frame: unused.
        """
        self.received = 1
        if number == signal.SIGHUP:
            leave_terminal()

    def raise_if_received(self, device: torch.device, message: str) -> None:
        """Raise :class:`Stopped` on all ranks if any rank has received a stop signal. All ranks must call it.

        Args:
            device: device that the process group's backend communicates from.
            message: line for the user.

        Raises:
            Stopped: with ``message``.
        """
        if all_reduce_sum(torch.tensor([self.received], device=device)).item():
            raise Stopped(message)


def leave_terminal() -> None:
    """Redirect the output to /dev/null if it went to a terminal that was closed, because each write would raise an
    error."""
    gone = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # stdout, stderr
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode):  # isatty denies it once the terminal is gone
                os.dup2(gone, number)
    os.close(gone)


def write_exit_code(code: int) -> None:
    """Write rank 0's exit code to the file that the variable ``HMT_DS_EXIT_CODE_FILE`` names, for a launch script.

    Not every launcher passes exit codes on. Without that variable nothing is written.

    Args:
        code: the exit code.
    """
    file = os.environ.get("HMT_DS_EXIT_CODE_FILE")
    if file and rank() == 0:
        Path(file).write_text(f"{code}\n")
