"""Start real rank processes; a test of them always ends, with a result or with their output."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forked_ranks import PROJECT, ForkedRank, cpu_environment, rank_server

# NCCL rejects two ranks of one machine on one GPU; ranks that claim to be on different machines use sockets
GPU_RANKS = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "NCCL_NET": "Socket", "HF_HUB_OFFLINE": "1"}


class RanksFailed(AssertionError):
    """A rank failed or did not end in time; the message is the ranks' output."""


def run_ranks(
    script: str, task: Any, *, ranks: int = 2, timeout: float = 300, one_gpu: bool = False, **environment: str
) -> Any:
    """Run a script of this folder on some ranks, as ``script TASK RESULT``, and return what rank 0 wrote.

    Args:
        task: given to every rank, as JSON.
        timeout: seconds for the whole run.
        one_gpu: share one GPU through NCCL, which sees every rank as a machine of its own.
        environment: additional environment variables.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [str(Path(__file__).with_name(script)), json.dumps(task), str(result)]
        logs = [Path(folder) / f"rank_{rank}" for rank in range(ranks)]
        codes = wait_for(start_ranks(command, logs, environment, one_gpu=one_gpu), timeout)
        if any(codes):
            printed = "\n".join(f"--- rank {rank}\n{log.read_text()[-6000:]}" for rank, log in enumerate(logs))
            raise RanksFailed(f"{script}: exit codes {codes}\n{printed}")
        return json.loads(result.read_text())


def start_ranks(
    words: list[str], logs: list[Path], environment: dict[str, str], *, one_gpu: bool = False
) -> Sequence[subprocess.Popen[bytes] | ForkedRank]:
    """Start ``python WORDS`` once per log; each log receives the output of its rank."""
    start = os.environ | GPU_RANKS if one_gpu else cpu_environment()
    common = start | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | environment
    processes: list[subprocess.Popen[bytes] | ForkedRank] = []
    for rank, log in enumerate(logs):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(logs))}
        if one_gpu:
            own |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NCCL_HOSTID": f"machine {rank}"}
            processes.append(start_on_gpu(words, common | own, log))
        else:
            processes.append(rank_server(rank % 2).start(words, common | own, log))
    return processes


def start_on_gpu(words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a new interpreter: CUDA does not survive a fork."""
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=PROJECT
        )


def wait_for(
    processes: Sequence[subprocess.Popen[bytes] | ForkedRank], timeout: float, patience: float = 0.0
) -> list[int]:
    """Return the exit codes. A failure or the timeout ends all ranks, which would wait for each other forever.

    Args:
        patience: seconds that the other ranks get after the first failure.
    """
    deadline, failed = time.monotonic() + timeout, False
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if not failed and any(process.returncode for process in processes):
                deadline, failed = min(deadline, time.monotonic() + patience), True
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    return [process.wait() for process in processes]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
