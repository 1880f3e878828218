"""Would the tests see it? Each break of the code, made for real, turns a test red that is green without it."""

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import PROJECT, cpu_environment

BREAKS = str(Path(__file__).with_name("breaks"))
ZERO0 = ["tests/distributed/test_zero_gradients.py", "-k", "gradients_and_weights and zero0"]
ZERO1 = ["tests/distributed/test_zero_gradients.py", "-k", "gradients_and_weights and zero1"]


def run_tests(chosen: list[str], broken: str) -> subprocess.CompletedProcess[str]:
    """Chosen tests in a process of their own, in which the code is broken."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen],
        cwd=PROJECT,
        env=cpu_environment(PYTHONPATH=BREAKS, HMT_DS_BREAK=broken),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("broken", "chosen", "red"),
    [
        ("labels", ["tests/unit/test_data_batches.py"], "test_data_batches.py"),
        ("memory", ["tests/unit/test_unroll.py"], "test_unroll.py"),
        ("borders", ["tests/unit/test_unroll.py"], "test_unroll.py"),
        ("memory", ZERO0, "gradients_and_weights[zero0"),
        ("reduction", ZERO0, "gradients_and_weights[zero0"),
        ("reduction", ZERO1, "gradients_and_weights[zero1"),
    ],
)
def test_break_is_seen(broken, chosen, red):
    run = run_tests(chosen, broken)
    # 1: a test failed; anything else would be an error of pytest's, and no proof
    assert run.returncode == 1 and "FAILED" in run.stdout and red in run.stdout, run.stdout + run.stderr
    assert "AssertionError" in run.stdout, run.stdout


@pytest.mark.parametrize("chosen", [["tests/unit/test_data_batches.py", "tests/unit/test_unroll.py"], ZERO1])
def test_green_without_a_break(chosen):
    """The same runs, unbroken, pass: so it is the break that was seen."""
    run = run_tests(chosen, "")
    assert run.returncode == 0, run.stdout + run.stderr
