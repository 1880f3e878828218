"""What runs beside a rank: ``python -I watchdog_process.py PID RANK SECONDS``; its input are the rank's signs of life.

It needs Python's own library alone, so it takes little memory, and no import of the project keeps it from starting.
"""

import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

TICK = 1.0  # seconds between two looks
OTHERS = 1.1  # ranks that wait for one that is stopped live a little longer: so the line names the one at fault
STACK = 1.0  # seconds for the rank to write where it is


def watch(pid: int, rank: str, seconds: float) -> None:
    """Until the rank is gone, or has to be killed."""
    silent, after = 0.0, "its first step"
    while os.getppid() == pid:
        began = time.monotonic()
        if select.select([0], [], [], TICK)[0]:
            if not (said := os.read(0, 65536)):
                return
            silent, after = 0.0, said.decode(errors="replace").splitlines()[-1]
        else:
            # a longer time is one in which this process was stopped, and the whole job with it
            silent += min(time.monotonic() - began, 2 * TICK)
        if silent > seconds * (1 if is_stopped(pid) else OTHERS):
            here = f"rank {rank} on {socket.gethostname()}"
            kill(pid, f"error: {here} gave no sign of life for {silent:.0f} s after {after}")
            return


def kill(pid: int, said: str) -> None:
    """End the rank; what waits for it fails, and ends too."""
    stopped = is_stopped(pid)
    why = "its process is stopped" if stopped else "where it is follows"
    print(f"\n{said} (training.hang_minutes): {why}; it is killed", file=sys.stderr, flush=True)
    with suppress(ProcessLookupError):
        if not stopped:
            os.kill(pid, signal.SIGUSR2)
            time.sleep(STACK)
        os.kill(pid, signal.SIGKILL)


def is_stopped(pid: int) -> bool:
    """Whether a process was sent SIGSTOP, as far as the system tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # these are for the rank
    watch(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
