"""A watchdog process per rank, which kills the rank when it hangs, so that the run ends and can be restarted."""

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from hmt_ds.distributed.note_files import NOTES
from hmt_ds.distributed.process_group import rank

PROCESS = Path(__file__).with_name("watchdog_process.py")


class Watchdog:
    """Watches this rank from another process, which prints its stack and kills it after some minutes without progress.

    A rank may be suspended (SIGSTOP), or its GPU, its file system or a rank on a dead machine may not answer. Code
    within the rank could neither notice nor end that.

    Args:
        minutes: minutes without progress after which the rank is killed.
        folder: folder of the run. While the rank lives, ``ranks/rank_00000.json`` in the folder tells its last
            progress.
    """

    def __init__(self, minutes: float, folder: Path):
        self.note = (folder / NOTES / f"rank_{rank():05d}.json").absolute()
        with suppress(OSError):
            self.note.parent.mkdir(exist_ok=True)
        self.stack = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        faulthandler.register(signal.SIGUSR2, self.stack, all_threads=False)
        words = [os.getpid(), rank(), 60 * minutes, self.stack.fileno(), self.note]
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
        """Report this rank's progress to the watchdog process.

        Args:
            after: what was just done, such as ``step 12``.
        """
        with suppress(OSError):  # the watchdog is stopped, or gone
            os.write(self.pipe, f"{after}\n".encode())

    def end(self) -> None:
        """End the watchdog process; the rank is no longer watched."""
        self.process.kill()
        self.process.wait()
        with suppress(OSError):
            self.note.unlink(missing_ok=True)
            self.note.with_suffix(".part").unlink(missing_ok=True)
