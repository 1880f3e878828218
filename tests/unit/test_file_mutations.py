"""Mutated files end in the unchanged result, what they now say, or one line; `file_mutations.py` tries thousands."""

import subprocess
import sys

import file_mutations
import pytest
from file_subjects import SUBJECTS


@pytest.mark.filterwarnings("ignore")  # of transformers, about values that it does not know
@pytest.mark.parametrize("name", SUBJECTS)
def test_some_mutations(tmp_path, name):
    ends, reports = file_mutations.try_mutations(name, 40, seed=1, folder=tmp_path)
    assert not reports, reports[0]
    assert ends.total() == 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SUBJECTS)
def test_two_thousand_mutations(name):
    """In a process of its own, which may crash."""
    words = [sys.executable, file_mutations.__file__, "2000", name]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-6000:]
