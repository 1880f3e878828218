"""The watchdog process of a rank: ``python -I watchdog_process.py PID RANK SECONDS STACK NOTE``, progress on stdin.

Imports only the standard library, so that it takes little memory and always starts.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

TICK = 1.0  # seconds between two checks
# Ranks that may only be waiting for a stopped rank get more time, so that the stopped one is killed first: this share
# of the limit, and at least these seconds.
EXTRA_SHARE, EXTRA_SECONDS = 0.1, 5.0
STACK_SECONDS = 1.0  # for the rank to write its stack
FRAMES = 8  # of its stack, innermost first
NOTE_SECONDS = 3.0  # between two notes for `hmt-ds status`


def watch(pid: int, rank: str, seconds: float, stack: int, note: Path) -> None:
    """Watch a rank until it exits, and kill it after too long without a report of progress on stdin.

    Args:
        pid: process id of the rank.
        rank: number of the rank, for messages.
        seconds: longest time without progress, in seconds.
        stack: file descriptor that the rank writes its Python stack to when it receives SIGUSR2.
        note: file for `hmt-ds status`, rewritten every few seconds, also while the rank hangs.
    """
    silent, after, noted = 0.0, "its start", -NOTE_SECONDS
    here = f"rank {rank} on {socket.gethostname()}"
    while os.getppid() == pid:
        began = time.monotonic()
        if select.select([0], [], [], TICK)[0]:
            if not (signs := os.read(0, 65536)):
                break
            silent, after = 0.0, signs.decode(errors="replace").splitlines()[-1]
        else:
            # a longer wait means that this process was stopped too, with the whole job: it does not count
            silent += min(time.monotonic() - began, 2 * TICK)
        if time.monotonic() - noted >= NOTE_SECONDS:
            noted = time.monotonic()
            write_note(note, rank, pid, after, silent)
        if silent > seconds + (0 if is_stopped(pid) else max(EXTRA_SHARE * seconds, EXTRA_SECONDS)):
            limit = f"training.hang_minutes allows {seconds:.0f} s"
            said = f"error: {here} made no progress for {silent:.0f} s after {after}; {limit}"
            print(f"\n{said}; {why(pid, stack)}", file=sys.stderr, flush=True)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # what waits for it fails, and ends too
            return
    # a rank that ends by itself ends its watchdog first
    with suppress(OSError):
        print(f"\nerror: {here} was killed, or crashed, after {after}", file=sys.stderr, flush=True)


def write_note(note: Path, rank: str, pid: int, after: str, silent: float) -> None:
    """Write a rank's last progress to a JSON file, with one rename; ignore errors such as a full disk.

    Args:
        note: the file.
        rank: number of the rank.
        pid: process id of the rank.
        after: what the rank did last, such as ``step 12``.
        silent: seconds since the rank last reported progress.
    """
    host, stopped = socket.gethostname(), is_stopped(pid)
    content = {"rank": int(rank), "host": host, "pid": pid, "after": after, "silent": silent, "stopped": stopped}
    aside = note.with_suffix(".part")
    with suppress(OSError):
        aside.write_text(json.dumps(content))
        aside.replace(note)


def why(pid: int, stack: int) -> str:
    """Describe why a rank hangs: its process is suspended, or else the Python stack that it prints on SIGUSR2.

    Args:
        pid: process id of the rank.
        stack: file descriptor that the rank writes its Python stack to when it receives SIGUSR2.
    """
    if is_stopped(pid):
        return "its process is stopped, and killed"
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR2)
        time.sleep(STACK_SECONDS)
    frames = os.pread(stack, 65536, 0).decode(errors="replace").splitlines()[1 : 1 + FRAMES]
    return "\n".join(["it is killed at", *frames]) if frames else "it is killed"


def is_stopped(pid: int) -> bool:
    """Return whether a process is suspended (SIGSTOP), according to /proc; False on systems without /proc.

    Args:
        pid: process id.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the rank
    watch(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
