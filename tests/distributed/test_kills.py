"""A run killed at random times ends with the losses of an undisturbed run; `kills.py` does it 200 times."""

import re
import subprocess
import sys

from ranks import PROJECT, cpu_environment


def test_three_kills():
    """One at each stage; in a process of its own, for it forks."""
    command = [sys.executable, "tests/distributed/kills.py", "--kills", "3", "--seed", "1"]
    done = subprocess.run(command, env=cpu_environment(), cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert re.findall(r"stage (\d): (\d+) kills", done.stdout) == [("1", "1"), ("2", "1"), ("3", "1")], done.stdout
