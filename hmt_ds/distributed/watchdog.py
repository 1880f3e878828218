"""A watchdog process beside each rank kills the rank when it hangs, so that the run ends and can be restarted."""

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
    """Kills this rank when it gives no sign of life for some minutes, and prints its Python stack if there is one.

    A rank may be stopped (SIGSTOP), or its GPU, its file system or a rank on a dead machine may not answer. No code
    within the rank could notice or end that.

    Args:
        minutes: of silence before the rank is killed.
    """

    def __init__(self, minutes: float):
        self.stack = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        faulthandler.register(signal.SIGUSR2, self.stack, all_threads=False)
        words = [os.getpid(), rank(), 60 * minutes, self.stack.fileno()]
        # a session of its own: a signal to the process group must not end the watchdog before the rank
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
        """Give a sign of life after something was done (``step 12``)."""
        with suppress(OSError):  # the watchdog is stopped, or gone
            os.write(self.pipe, f"{after}\n".encode())

    def end(self) -> None:
        """Stop watching."""
        self.process.kill()
        self.process.wait()
