"""Each deliberate bug of breaks/sitecustomize.py fails a test that passes without it."""

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import PROJECT, cpu_environment
from zero_cases import SAMPLE, Case

BREAKS = str(Path(__file__).with_name("breaks"))
BATCHES, UNROLL = "tests/unit/test_data_batches.py", "tests/unit/test_bptt.py"
ZERO0, ZERO1, ZERO3 = Case("zero0"), Case("zero1", reduction="step"), Case("zero3")
OFFLOADED = Case("zero2_offload", "frozen"), Case("zero3_offload", "lora")
KEPT = Case("zero3", recompute="none", summary_batch=2, leaf_layers=2)
ONCE = (
    Case("zero0", reduction="step", recompute="segment+layer", summary_batch=3),
    Case("zero2_offload", reduction="step"),
)


def gradients(*cases: Case) -> list[str]:
    """Test ids of some cases."""
    assert set(cases) <= set(SAMPLE)
    return [f"tests/distributed/test_zero_gradients.py::test_gradients_and_weights[{case}]" for case in cases]


SLOW = [
    ("memory", [UNROLL]),
    ("borders", [UNROLL]),
    ("reduction", gradients(ZERO0, ZERO1)),
    # DeepSpeed's silent bugs, each without its cure: a weight that misses the last pass of a step, one that misses the
    # first (its last step's gradient is added), and backward passes that follow each other
    ("summaries", gradients(*OFFLOADED)),
    ("segments", gradients(ZERO3, *OFFLOADED)),
    ("flags", gradients(KEPT)),
    ("undelivered", gradients(*ONCE)),
    ("delivered_twice", gradients(*ONCE)),
]


def run_tests(chosen: list[str], broken: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a separate process in which a bug is active."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen],
        cwd=PROJECT,
        env=cpu_environment(PYTHONPATH=BREAKS, HMT_DS_BREAK=broken),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("broken", "chosen"),
    [
        ("labels", [BATCHES]),
        ("memory", gradients(ZERO0)),
        *(pytest.param(broken, chosen, marks=pytest.mark.slow) for broken, chosen in SLOW),
    ],
)
def test_break_is_seen(broken, chosen):
    """At least one test of every chosen file fails."""
    run = run_tests(chosen, broken)
    # 1: a test failed; anything else would be an error of pytest's, and no proof
    assert run.returncode == 1 and "AssertionError" in run.stdout, run.stdout + run.stderr
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    for one in chosen:
        assert any(one in line for line in failed), run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [[BATCHES, UNROLL], gradients(ZERO0, ZERO1, ZERO3, *OFFLOADED, KEPT, *ONCE)])
def test_green_without_a_break(chosen):
    """The same tests pass without the bug, so it is the bug that they detect."""
    run = run_tests(chosen, "")
    assert run.returncode == 0, run.stdout + run.stderr
