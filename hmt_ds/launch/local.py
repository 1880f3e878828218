"""Starting the ranks of this machine, and ending them properly."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from types import FrameType

import psutil

VISIBLE = "CUDA_VISIBLE_DEVICES"


def run_ranks(module: str, arguments: list[str], ranks: int) -> int:
    """Run a module on so many ranks through the deepspeed launcher; returns the exit code.

    The first SIGINT, SIGTERM or SIGUSR1 is passed on to the ranks, which save and end; the second kills them.
    """
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *places(ranks)]
    launcher += ["--master_port", str(free_port()), "--log_level", "error"]
    command = [*launcher, "--no_local_rank", "--module", module, *arguments]
    received: list[int] = []
    with tempfile.NamedTemporaryFile("r") as word:
        # a session of its own: a terminal's Ctrl-C would end the launcher while the ranks are still saving
        environment = os.environ | {"HMT_DS_EXIT_CODE_FILE": word.name}
        if "--include" in launcher:
            del environment[VISIBLE]  # its devices are named to the launcher, which counts them among all
        process = subprocess.Popen(command, start_new_session=True, env=environment)

        def pass_on(number: int, frame: FrameType | None) -> None:
            received.append(number)
            started = ranks_below(process.pid)
            if len(received) > 1 or not started:
                os.killpg(process.pid, signal.SIGKILL)
            for rank in started:
                rank.send_signal(signal.SIGTERM)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, pass_on)
        code = process.wait()
        # rank 0's word counts: the launcher ends with 0 where a signal has killed what it started
        if said := word.read():
            return int(said)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks that a killed launcher has left
        return 128 + received[0] if received else code or 1


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
