"""Starting the ranks of this machine, and ending them properly."""

import os
import signal
import socket
import subprocess
import sys
from types import FrameType

import psutil

VISIBLE = "CUDA_VISIBLE_DEVICES"


def run_ranks(module: str, arguments: list[str], ranks: int) -> int:
    """Run a module on so many ranks through the deepspeed launcher; returns the exit code.

    The first SIGINT or SIGTERM is passed on to the ranks, which save and end; the second kills them.
    """
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *places(ranks)]
    launcher += ["--master_port", str(free_port()), "--log_level", "error"]
    # a session of its own: a terminal's Ctrl-C would end the launcher while the ranks are still saving
    words = [*launcher, "--no_local_rank", "--module", module, *arguments]
    environment = {key: value for key, value in os.environ.items() if key != VISIBLE or "--include" not in words}
    process = subprocess.Popen(words, start_new_session=True, env=environment)
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


def places(ranks: int) -> list[str]:
    """Which devices the launcher is to use: given a number it takes the first, whatever CUDA_VISIBLE_DEVICES says."""
    visible = os.environ.get(VISIBLE, "").split(",")
    if os.environ.get("DS_ACCELERATOR") != "cpu" and len(visible) >= ranks and all(name.isdigit() for name in visible):
        return ["--include", f"localhost:{','.join(visible[:ranks])}"]
    return ["--num_gpus", str(ranks)]


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
