"""Clocks and bandwidth that ranks on two machines measure, here two processes."""

import json
import subprocess
import sys

from ranks import PROJECT, cpu_environment

from hmt_ds.distributed.network import Links, bound_port

AHEAD = "import time; right = time.time; time.time = lambda: right() + 30"
RANK = "from hmt_ds.distributed.links import main; main()"


def start(number: int, port: int, first: str) -> subprocess.Popen[str]:
    """Start a rank after a first line of Python."""
    place = {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment = cpu_environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **place)
    command = [sys.executable, "-c", f"{first}\n{RANK}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=PROJECT, **pipes)


def test_two_ranks():
    port = bound_port(0)
    ranks = [start(0, port, ""), start(1, port, AHEAD)]
    printed = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    one, other = (Links(*json.loads(text.splitlines()[-1])[f"rank {n}"]) for n, text in enumerate(printed))
    assert one.backend == "gloo" and one.clock == 0 and abs(other.clock - 30) < 0.5
    assert min(one.neighbours, other.neighbours, one.all_reduce, other.all_reduce) > 1e6


def test_a_rank_that_waits_in_vain_says_so():
    rank = start(0, bound_port(0), "from hmt_ds.distributed import links; links.MINUTES = 0.05")
    said = rank.communicate(timeout=240)[1].splitlines()
    assert rank.returncode == 1 and "1/2 clients joined" in said[-1], said
