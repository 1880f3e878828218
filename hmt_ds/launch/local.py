"""Run ranks on this machine with DeepSpeed's launcher, forward stop signals, and return the exit code."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from types import FrameType

import psutil

from hmt_ds.distributed.processes import command_variable
from hmt_ds.reporting.progress import print_problems

VISIBLE = "CUDA_VISIBLE_DEVICES"


def run_ranks(module: str, arguments: list[str], ranks: int) -> int:
    """Run a module on ``ranks`` ranks of this machine with DeepSpeed's launcher; return the launcher's exit code.

    The first SIGINT, SIGTERM, SIGUSR1 or SIGHUP is forwarded to the ranks, which save a checkpoint and exit; a second
    signal kills them.

    Args:
        module: name of the module, such as ``hmt_ds.train``.
        arguments: the module's command-line arguments.
        ranks: number of ranks.
    """
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *device_options(ranks)]
    launcher += ["--master_port", str(free_port()), "--log_level", "critical"]
    command = [*launcher, "--no_local_rank", "--module", module, *arguments]
    received: list[int] = []
    with tempfile.NamedTemporaryFile("r") as code_file:
        environment = os.environ | {"HMT_DS_EXIT_CODE_FILE": code_file.name} | command_variable()
        if "--include" in launcher:
            del environment[VISIBLE]  # the launcher would apply it to the devices named with --include
        # in a session of its own, because Ctrl-C in a terminal would end the launcher while the ranks are still saving
        process = subprocess.Popen(command, start_new_session=True, env=environment)

        def forward_signal(number: int, frame: FrameType | None) -> None:
            started = rank_processes(process.pid)
            # SIGHUP may come twice, from the shell and from the terminal
            if (received and number != signal.SIGHUP) or not started:
                os.killpg(process.pid, signal.SIGKILL)
            received.append(number)
            for rank in started:
                rank.send_signal(signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, forward_signal)
        code = process.wait()
        # rank 0 writes its exit code to the file, because the launcher exits with 0 when a signal killed the ranks
        if text := code_file.read():
            return int(text)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks that outlived the launcher
        if received:
            return 128 + received[0]
        if code <= 0:  # killed itself, or its own child; in all other cases a rank has said why
            print_problems([f"DeepSpeed's launcher ended before the ranks did ({ending(code)})"])
        return code or 1


def ending(code: int) -> str:
    """Describe in words how a process ended.

    Args:
        code: exit code as subprocess returns it; negative after a signal.
    """
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def device_options(ranks: int) -> list[str]:
    """Return command-line options for DeepSpeed's launcher that give each rank a GPU of CUDA_VISIBLE_DEVICES.

    Given only a number of devices, the launcher takes the machine's first ones and ignores CUDA_VISIBLE_DEVICES.

    Args:
        ranks: number of ranks to start on this machine.
    """
    visible = os.environ.get(VISIBLE, "").split(",")
    if os.environ.get("DS_ACCELERATOR") != "cpu" and len(visible) >= ranks and all(name.isdigit() for name in visible):
        return ["--include", f"localhost:{','.join(visible[:ranks])}"]
    return ["--num_gpus", str(ranks)]


def rank_processes(launcher: int) -> list[psutil.Process]:
    """Return the rank processes that DeepSpeed's launcher started on this machine.

    Args:
        launcher: process id of the launcher.
    """
    try:
        below = psutil.Process(launcher).children(recursive=True)
        return [p for p in below if "deepspeed.launcher.launch" in " ".join(p.parent().cmdline())]
    except psutil.Error:
        return []


def free_port() -> int:
    """Return a TCP port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
