"""Find out about other processes of this machine, and end ranks when the process that started them ends.

Imports only the standard library.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

COMMAND = "HMT_DS_COMMAND"  # environment variable: process id and start of the command that started the ranks
TICK = 1.0  # seconds between two checks


def start_of(pid: int) -> str | None:
    """Return when a process was started, in clock ticks since the boot; None if it has ended or there is no /proc.

    Args:
        pid: process id.
    """
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    return None


def command_variable() -> dict[str, str]:
    """Return an environment variable by which ranks recognize the ``hmt-ds`` command that started them.

    A dict with one entry, whose value has the command's process id and start time: a rank ends when that process ends.
    Empty on systems without /proc.
    """
    start = start_of(os.getpid())
    return {COMMAND: f"{os.getpid()} {start}"} if start else {}


def end_with_parent() -> None:
    """Start a thread that ends this process when its parent, or the ``hmt-ds`` process above its launcher, is gone.

    Otherwise ranks would train on when ``hmt-ds`` is killed, and the next start would train beside them.
    """
    threading.Thread(target=watch_parent, args=(os.getppid(), os.environ.get(COMMAND, "")), daemon=True).start()


def watch_parent(parent: int, command: str) -> None:
    """Wait until the parent process or ``hmt-ds`` is gone, and end the current process then.

    Args:
        parent: process id of the parent.
        command: process id and start time of ``hmt-ds``, separated by a blank; empty if unknown.
    """
    pid, _, start = command.partition(" ")
    while os.getppid() == parent and not (command and start_of(int(pid)) != start):
        time.sleep(TICK)
    with suppress(OSError):  # the terminal may be gone too
        print(f"\nerror: rank {os.environ.get('RANK', 0)} ends: what started it is gone", file=sys.stderr, flush=True)
    os._exit(1)  # at once, as the other ranks do
