"""Faults during a Slurm job are detected in time, and the run resumes from its newest checkpoint, bit for bit."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PROJECT, SITE_PACKAGES, VENV, Cluster, Curve, curve, finish, wait_for_step, wait_until
from jobs import log_of, starts, submit, wait_for_start

pytestmark = pytest.mark.cluster

EVERY = 20  # steps between checkpoints
HANG = 12  # seconds
RANK = "^[^ ]*python[^ ]* -u -m hmt_ds.train"
MORE = ("--checkpoint.every", str(EVERY), "--training.hang_minutes", str(HANG / 60))
NO_DROPOUT = [word for place in ("attn", "embd", "resid") for word in (f"--model.source.{place}_pdrop", "0")]


def killed(cluster: Cluster) -> None:
    """Kill a rank with SIGKILL, as the kernel does when memory runs out."""
    cluster.check("node1", "pkill", "-KILL", "-f", RANK)


def stopped(cluster: Cluster) -> None:
    """Stop a rank with SIGSTOP: it stays alive and does nothing."""
    cluster.check("node1", "pkill", "-STOP", "-f", RANK)


def without_power(cluster: Cluster) -> None:
    """Cut a node's power."""
    cluster.minicluster("fail", "node1")


def go_on(cluster: Cluster, output: Path, job: str, fault: Callable[[Cluster], None]) -> str:
    """Cause a fault in a running job and wait for the job to complete; return a line of timings."""
    before, began = len(curve(output)), time.monotonic()
    fault(cluster)
    wait_until(lambda: cluster.job(job, "Restarts") == "1", lambda: log_of(output))
    seen = time.monotonic() - began
    if fault is without_power:
        wait_until(lambda: "down" in state_of_node_1(cluster), lambda: state_of_node_1(cluster))
        cluster.minicluster("boot", "node1")
    wait_for_start(output, 2)
    log, notes = output / "metrics.jsonl", output / "starts"
    wait_until(lambda: log.stat().st_mtime > notes.stat().st_mtime, lambda: log_of(output))
    again = time.monotonic() - began
    assert cluster.wait(job) == "COMPLETED", log_of(output)
    resumed = re.findall(r"resumed from .*, step (\d+)", log_of(output))
    lost = before - int(resumed[0] if resumed else 0)
    assert 0 <= lost <= EVERY + 5, log_of(output)
    return f"{fault.__name__}: seen after {seen:.0f} s, training again after {again:.0f} s, {lost} steps lost"


def state_of_node_1(cluster: Cluster) -> str:
    """The state of node1 that Slurm reports."""
    return cluster.check("head", "sinfo", "-h", "-n", "node1", "-o", "%T")


@pytest.mark.parametrize("fault", [killed, stopped, without_power])
def test_a_fault_in_the_middle_of_a_step(cluster, recipe, undisturbed, tmp_path, fault):
    output = tmp_path / "run"
    job = submit(cluster, recipe, output, *MORE)
    wait_for_step(output, EVERY + 3)
    print(go_on(cluster, output, job, fault))
    assert starts(output) == 2 and curve(output) == undisturbed


def test_a_power_cut_in_the_middle_of_a_save(cluster, recipe, undisturbed, tmp_path):
    output = tmp_path / "run"
    environment = {"PYTHONPATH": f"{PROJECT}/tests/cluster/slow:{PROJECT}", "HMT_DS_SLOW": str(tmp_path)}
    job = submit(cluster, recipe, output, *MORE, **environment)
    wait_until((tmp_path / "saving").exists, lambda: log_of(output))
    print(go_on(cluster, output, job, without_power))
    assert starts(output) == 2 and curve(output) == undisturbed


def test_a_machine_that_comes_back_unfit(cluster, recipe, undisturbed, tmp_path):
    """A restarted job is requeued until its machines pass their checks; a first start would fail."""
    output = tmp_path / "run"
    job = submit(cluster, recipe, output, *MORE)
    wait_for_step(output, EVERY + 3)
    with cluster.without("node1", SITE_PACKAGES / "deepspeed"):
        killed(cluster)
        wait_until(lambda: "failed its checks; requeueing the job" in log_of(output), lambda: log_of(output))
    assert cluster.wait(job) == "COMPLETED", log_of(output)
    assert f"error: node1: deepspeed not installed in {VENV}/bin/python: pip install -e . there\n" in log_of(output)
    assert cluster.job(job, "Restarts") == "2" and starts(output) == 3 and curve(output) == undisturbed


def test_slurmd_is_killed(cluster, recipe, tmp_path):
    """Slurm marks the node down while its rank still works, and restarts the job when the node is back."""
    output = tmp_path / "run"
    job = submit(cluster, recipe, output, *MORE, "--training.steps", "1000")
    wait_for_step(output, EVERY + 3)
    began = time.monotonic()
    cluster.check("node1", "pkill", "-KILL", "slurmd")
    wait_until(lambda: "down" in state_of_node_1(cluster), lambda: state_of_node_1(cluster))
    print(f"slurmd: seen after {time.monotonic() - began:.0f} s")
    cluster.check("node1", "slurmd")
    assert cluster.wait(job) == "COMPLETED", log_of(output)
    print(f"at the end after {time.monotonic() - began:.0f} s; starts: {starts(output)}")
    assert [step for step, *_ in curve(output)] == list(range(1, 1001))


@contextmanager
def node_1_lost(cluster: Cluster) -> Iterator[None]:
    """Power off node1 in this context."""
    cluster.minicluster("fail", "node1")
    try:
        yield
    finally:
        cluster.minicluster("boot", "node1")


@pytest.fixture(scope="module")
def without_dropout(cluster, recipe, tmp_path_factory) -> Curve:
    """An undisturbed run without dropout: its losses do not depend on the number of ranks."""
    output = tmp_path_factory.mktemp("without_dropout") / "run"
    local = ("bash", "launch/local.sh", str(recipe), "--ranks", "2")
    cluster.check("node0", *local, "--training.output", str(output), *NO_DROPOUT)
    return curve(output)


def check_losses(output: Path, expected: Curve) -> None:
    """Assert that a run's losses equal the expected ones up to rounding."""
    found = curve(output)
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    worst = max(abs(a[1] - b[1]) / b[1] for a, b in zip(found, expected, strict=True))
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert worst < 1e-4


def test_a_node_is_lost_for_good(cluster, recipe, without_dropout, tmp_path):
    """The job continues on the other node with the whole global batch."""
    output = tmp_path / "run"
    wait_until(lambda: state_of_node_1(cluster).strip() == "idle", lambda: state_of_node_1(cluster))
    more = (*MORE, *NO_DROPOUT, "--nodes", "1-2", "--training.elastic", "true")
    job = submit(cluster, recipe, output, *more)
    wait_for_step(output, EVERY + 3)
    with node_1_lost(cluster):
        assert cluster.wait(job) == "COMPLETED", log_of(output)
        assert cluster.job(job, "NumNodes") == "1" and starts(output) == 2, log_of(output)
    assert "batch_size: 2" in log_of(output) and "batch_size: 4" in log_of(output)
    check_losses(output, without_dropout)


def test_torchrun_loses_a_node_for_good(cluster, recipe, without_dropout, tmp_path):
    output = tmp_path / "run"
    more = (*MORE, *NO_DROPOUT, "--training.elastic", "true", "--training.output", str(output))
    words = ("bash", "launch/torchrun.sh", str(recipe), *more)
    place = {"RANKS": "1", "NODES": "1:2", "MASTER_ADDR": "node0"}
    with cluster.start("node0", *words, **place) as stays, cluster.start("node1", *words, **place) as lost:
        wait_for_step(output, EVERY + 3)
        with node_1_lost(cluster):
            finish(lost)
            code, printed = finish(stays)
    assert code == 0 and "resumed from" in printed, printed
    check_losses(output, without_dropout)
