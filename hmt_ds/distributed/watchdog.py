"""A process beside each rank, which ends the rank when it hangs: so nobody waits for it, and the run can start anew."""

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from hmt_ds.distributed.process_group import rank

PROCESS = Path(__file__).with_name("watchdog_process.py")


class Watchdog:
    """Kills this rank when it gives no sign of life for so long.

    A rank may be stopped, or its GPU, its file system or a neighbour on a machine that is gone may not answer: no code
    within it would notice, or could end it. Python's stack is shown, if Python can still tell.

    Args:
        minutes: how long one sign of life lasts.
    """

    def __init__(self, minutes: float):
        self.stack = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        faulthandler.register(signal.SIGUSR2, self.stack, all_threads=False)
        words = [os.getpid(), rank(), 60 * minutes, self.stack.fileno()]
        # a session of its own: what ends a group of processes must not end the watchdog before the rank
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(PROCESS), *map(str, words)],
            stdin=subprocess.PIPE,
            pass_fds=[self.stack.fileno()],
            start_new_session=True,
        )
        assert self.process.stdin is not None
        self.pipe = self.process.stdin.fileno()
        os.set_blocking(self.pipe, False)

    def alive(self, after: str) -> None:
        """A sign of life, after something that was done (``step 12``)."""
        with suppress(OSError):  # the watchdog is stopped too, or gone
            os.write(self.pipe, f"{after}\n".encode())

    def end(self) -> None:
        """The rank need not give signs of life any more."""
        self.process.kill()
        self.process.wait()
