"""A run killed at random times ends with the losses of an undisturbed run; `kills.py` does it 200 times."""

import re

from tiny_recipe import run_words


def test_three_kills():
    """One at each stage; in a process of its own, for it forks."""
    words = ("tests/distributed/kills.py", "--kills", "3", "--seed", "1")
    code, printed = run_words(*words, ranks=1, timeout=300)
    assert code == 0, printed[-6000:]
    assert re.findall(r"stage (\d): (\d+) kills", printed) == [("1", "1"), ("2", "1"), ("3", "1")], printed
