"""Runs whose command is killed or hung up, that are started twice, or beside a dead start's lock; 20 times each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import cpu_environment

HERE = Path(__file__).parent


def rude_ends(*words: str, timeout: int) -> list[tuple[str, str, str]]:
    """Run the script; return kind, place and number of its lines."""
    command = [sys.executable, HERE / "rude_ends.py", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=cpu_environment())
    assert ended.returncode == 0, ended.stderr[-6000:]
    return re.findall(r"^(\w+), (\w+): (\d+) times", ended.stdout, re.MULTILINE)


def test_a_start_beside_the_lock_of_a_dead_one_elsewhere():
    words = ("--times", "1", "--kinds", "dead_holder", "--places", "shared")
    assert rude_ends(*words, timeout=300) == [("dead_holder", "shared", "1")]


@pytest.mark.slow
@pytest.mark.timeout(10800)
@pytest.mark.parametrize("kind", ["killed", "hangup", "twice", "dead_holder"])
def test_twenty_times(kind):
    expected = [(kind, place, "20") for place in ("local", "shared")]
    assert rude_ends("--times", "20", "--kinds", kind, timeout=10000) == expected
