"""Client of rank_server.py: start ranks as forks of a process that has imported the libraries."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


class ForkedRank:
    """A process that a `RankServer` started, with the methods of `Popen` that the tests use."""

    def __init__(self, server: "RankServer", pid: int):
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = self.server.ask(poll=self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


class RankServer:
    """A rank_server.py process."""

    def __init__(self) -> None:
        # without PYTHONPATH: a deliberate break would import hmt_ds into the server
        environment = {name: value for name, value in cpu_environment().items() if name != "PYTHONPATH"}
        command = [sys.executable, str(Path(__file__).with_name("rank_server.py"))]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        atexit.register(self.process.communicate)

    def start(self, words: list[str], environment: dict[str, str], log: Path) -> ForkedRank:
        """Start a process that runs ``python WORDS``."""
        log.touch()
        request = {"words": words, "environment": environment, "folder": str(PROJECT), "log": str(log)}
        return ForkedRank(self, self.ask(**request))

    def ask(self, **request: Any) -> Any:
        """Send a request and return the answer."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        answer = self.process.stdout.readline()
        assert answer, "the rank server has ended"
        return json.loads(answer)


@cache
def rank_server(number: int) -> RankServer:
    """Return one of two servers. Neighbouring ranks use different ones: the order of a set of strings differs there."""
    return RankServer()


def cpu_environment(**more: str) -> dict[str, str]:
    """This process's environment, for ranks that share a few cores and need no network."""
    fixed = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return os.environ | fixed | more
