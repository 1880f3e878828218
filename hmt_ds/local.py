"""Starting the ranks of this machine, and ending them properly."""

import os
import signal
import socket
import subprocess
import sys
from types import FrameType

import psutil


def run_ranks(module: str, arguments: list[str], ranks: int) -> int:
    """Run a module on so many ranks through the deepspeed launcher; returns the exit code.

    The first SIGINT or SIGTERM is passed on to the ranks, which save and end; the second kills them.
    """
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    launcher += ["--master_port", str(free_port()), "--log_level", "error"]
    # a session of its own: a terminal's Ctrl-C would end the launcher while the ranks are still saving
    process = subprocess.Popen([*launcher, "--no_local_rank", "--module", module, *arguments], start_new_session=True)
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        started = ranks_below(process.pid)
        if len(received) > 1 or not started:
            os.killpg(process.pid, signal.SIGKILL)
        for rank in started:
            rank.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    code = process.wait()
    return 128 + received[0] if received else code


def ranks_below(launcher: int) -> list[psutil.Process]:
    """The rank processes that a launcher started: children of its per-machine part, not their own children."""
    try:
        below = psutil.Process(launcher).children(recursive=True)
        return [p for p in below if "deepspeed.launcher.launch" in " ".join(p.parent().cmdline())]
    except psutil.Error:
        return []


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
