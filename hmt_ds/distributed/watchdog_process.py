"""What runs beside a rank: ``python -I watchdog_process.py PID RANK SECONDS STACK``; its input are the signs of life.

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
OTHERS = 0.1, 5.0  # ranks that may be waiting for a stopped one live longer by this part, and seconds at least
PATIENCE = 1.0  # seconds for the rank to write where it is
FRAMES = 8  # of its stack, from where it is


def watch(pid: int, rank: str, seconds: float, stack: int) -> None:
    """Until the rank is gone, or has to be killed. It writes where it is into the file ``stack``, told USR2."""
    silent, after = 0.0, "its first step"
    while os.getppid() == pid:
        began = time.monotonic()
        if select.select([0], [], [], TICK)[0]:
            if not (signs := os.read(0, 65536)):
                return
            silent, after = 0.0, signs.decode(errors="replace").splitlines()[-1]
        else:
            # a longer time is one in which this process was stopped, and the whole job with it
            silent += min(time.monotonic() - began, 2 * TICK)
        if silent > seconds + (0 if is_stopped(pid) else max(OTHERS[0] * seconds, OTHERS[1])):
            here = f"rank {rank} on {socket.gethostname()}"
            said = f"error: {here} gave no sign of life for {silent:.0f} s after {after} (training.hang_minutes)"
            print(f"\n{said}; {why(pid, stack)}", file=sys.stderr, flush=True)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # what waits for it fails, and ends too
            return


def why(pid: int, stack: int) -> str:
    """What can be said of a rank that has to be killed."""
    if is_stopped(pid):
        return "its process is stopped, and killed"
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR2)
        time.sleep(PATIENCE)
    frames = os.pread(stack, 65536, 0).decode(errors="replace").splitlines()[1 : 1 + FRAMES]
    return "\n".join(["it is killed at", *frames]) if frames else "it is killed"


def is_stopped(pid: int) -> bool:
    """Whether a process was sent SIGSTOP, as far as the system tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # these are for the rank
    watch(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
