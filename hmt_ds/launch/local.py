"""Run ranks on this machine with DeepSpeed's launcher, forward stop signals, and return the exit code."""

import base64
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from types import FrameType

import psutil

from hmt_ds.distributed.processes import TICK, command_variable
from hmt_ds.reporting.progress import print_problems

LAUNCHER = "deepspeed.launcher.launch"
POLL = 0.1  # seconds between two looks at whether the ranks have ended


def run_ranks(module: str, arguments: list[str], ranks: int) -> int:
    """Run a module on ``ranks`` ranks of this machine with DeepSpeed's launcher; return rank 0's exit code.

    The first SIGINT, SIGTERM, SIGUSR1 or SIGHUP is forwarded to the ranks, which save a checkpoint and exit; a second
    signal kills them.

    Args:
        module: name of the module, such as ``hmt_ds.train``.
        arguments: the module's command-line arguments.
        ranks: number of ranks.
    """
    words = ["--world_info", world_info(ranks), "--master_port", str(free_port()), "--log_level", "critical"]
    words += ["--no_local_rank", "--module", module, *arguments]
    received: list[int] = []
    with tempfile.NamedTemporaryFile("r") as code_file:
        variables = {"HMT_DS_EXIT_CODE_FILE": code_file.name} | command_variable()
        # forked, because the checks of the recipe have imported DeepSpeed already, and a new process would do it again
        launcher = get_context("fork").Process(target=launch, args=(words, variables))
        launcher.start()

        def forward_signal(number: int, frame: FrameType | None) -> None:
            started = rank_processes(launcher)
            # SIGHUP may come twice, from the shell and from the terminal
            if (received and number != signal.SIGHUP) or not started:
                kill(launcher)
            received.append(number)
            for rank in started:
                rank.send_signal(signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, forward_signal)
        code = wait(launcher, code_file.fileno())
        # rank 0 writes its exit code to the file, because the launcher exits with 0 when a signal killed the ranks
        if text := code_file.read():
            return int(text)
        kill(launcher, after=3 * TICK)  # ranks that outlived the launcher and have not noticed by then
        if received:
            return 128 + received[0]
        if code <= 0:  # killed itself, or its own child; in all other cases a rank has said why
            print_problems([f"DeepSpeed's launcher ended before the ranks did ({ending(code)})"])
            return 1
        return code


def launch(words: list[str], variables: dict[str, str]) -> None:
    """Run DeepSpeed's launcher in this forked process, as ``python -m deepspeed.launcher.launch WORDS`` would.

    Args:
        words: command line of the launcher.
        variables: environment variables to set for the ranks.
    """
    os.setsid()  # because Ctrl-C in a terminal would end the launcher while the ranks are still saving
    os.environ.update(variables)
    sys.argv = [LAUNCHER, *words]
    runpy.run_module(LAUNCHER, run_name="__main__", alter_sys=True)


def wait(launcher: ForkProcess, code_file: int) -> int:
    """Wait until DeepSpeed's launcher ends, and return its exit code; kill the launcher when no rank runs any more.

    Without that, a run would end up to two seconds later: the launcher looks after its ranks once a second.

    Args:
        launcher: the launcher's process.
        code_file: file descriptor of the file to which rank 0 writes its exit code.
    """
    while launcher.exitcode is None:
        launcher.join(POLL)
        if os.fstat(code_file).st_size and not rank_processes(launcher):
            launcher.kill()
            launcher.join()
    return launcher.exitcode


def kill(launcher: ForkProcess, after: float = 0) -> None:
    """Kill DeepSpeed's launcher, and the ranks that it started.

    Args:
        launcher: the launcher's process, which may have ended.
        after: seconds to wait for ranks that end by themselves.
    """
    assert launcher.pid is not None
    deadline = time.monotonic() + after
    launcher.kill()
    with suppress(ProcessLookupError):  # the group of its session is empty
        while time.monotonic() < deadline:
            os.killpg(launcher.pid, 0)
            time.sleep(POLL)
        os.killpg(launcher.pid, signal.SIGKILL)


def ending(code: int) -> str:
    """Describe in words how a process ended.

    Args:
        code: exit code as subprocess returns it; negative after a signal.
    """
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def world_info(ranks: int) -> str:
    """Return which devices the ranks of this machine use, encoded as DeepSpeed's launcher expects.

    They are those of CUDA_VISIBLE_DEVICES if there are enough, else the machine's first ones.

    Args:
        ranks: number of ranks to start on this machine.
    """
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    devices = visible[:ranks] if len(visible) >= ranks else list(range(ranks))
    return base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()


def rank_processes(launcher: ForkProcess) -> list[psutil.Process]:
    """Return the rank processes of DeepSpeed's launcher that have not ended.

    Args:
        launcher: the launcher's process.
    """
    try:
        return [rank for rank in psutil.Process(launcher.pid).children() if runs(rank)]
    except psutil.Error:
        return []


def runs(process: psutil.Process) -> bool:
    """Return whether a process runs; one that has ended, but whose exit code nobody has asked for yet (a zombie), does
    not.

    Args:
        process: the process.
    """
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def free_port() -> int:
    """Return a TCP port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
