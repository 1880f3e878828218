"""Fixtures: a simulated ssh and Slurm cluster of two nodes, and the training run that the tests launch on it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from ranks import PROJECT, cpu_environment
from tiny_recipe import NO_COMPILER, make_materials, write_recipe

from hmt_ds.reporting.metrics import read_metrics

MINICLUSTER = Path(__file__).with_name("minicluster")
VENV = Path(sys.prefix)
SITE_PACKAGES = next(VENV.glob("lib/python3*/site-packages"))
CANNOT = 77  # minicluster's exit code on a machine that cannot run a cluster
NODES = ("head", "node0", "node1")
SBATCH = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2")
STEPS = 160
PATIENCE = 240.0  # seconds; long, because other processes may use the cores
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

Curve = list[tuple[int, float, float]]


class Cluster:
    """The nodes head, node0 and node1, which share the machine's files and cores.

    Args:
        state: the cluster's state folder.
    """

    def __init__(self, state: Path):
        self.state = state

    def minicluster(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the minicluster script: up, down, fail NODE, boot NODE."""
        return subprocess.run(
            [str(MINICLUSTER), *words],
            env=os.environ | {"MC_STATE": str(self.state)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    @contextmanager
    def start(self, node: str, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command on a node in the project's folder; kill its processes if the body raises."""
        more = {"MC_STATE": str(self.state), "VENV": str(VENV), "PATH": f"{VENV}/bin:{os.environ['PATH']}"}
        with subprocess.Popen(
            [str(MINICLUSTER), "exec", node, *command],
            env=cpu_environment(**NO_COMPILER | more | environment),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise

    def run(self, node: str, *command: str, timeout: float = PATIENCE, **environment: str) -> tuple[int, str]:
        """Run a command on a node; return its exit code and output."""
        with self.start(node, *command, **environment) as process:
            return finish(process, timeout)

    def check(self, node: str, *command: str, timeout: float = PATIENCE, **environment: str) -> str:
        """Run a command that must succeed; return its output."""
        code, printed = self.run(node, *command, timeout=timeout, **environment)
        assert code == 0, f"{' '.join(command)}: exit code {code}\n{printed}"
        return printed

    @contextmanager
    def without(self, node: str, folder: Path) -> Iterator[None]:
        """Hide a folder on one node."""
        self.check(node, "mount", "-t", "tmpfs", "tmpfs", str(folder))
        try:
            yield
        finally:
            self.check(node, "umount", str(folder))

    def submit(self, *words: str, **environment: str) -> str:
        """Submit a job; return its id."""
        return self.check("head", "sbatch", "--parsable", *words, **environment).split()[-1]

    def job(self, number: str, key: str) -> str:
        """A field of a job as Slurm reports it, such as JobState or ExitCode."""
        said = self.check("head", "scontrol", "show", "job", number)
        return dict(re.findall(r"(\S+?)=(\S*)", said))[key]

    def wait(self, number: str, *states: str, timeout: float = PATIENCE) -> str:
        """Wait until a job is in one of the states (by default: ended); return the state."""
        found = ""

        def there() -> bool:
            nonlocal found
            found = self.job(number, "JobState")
            return found in (states or ENDED)

        wait_until(there, lambda: f"job {number} is {found}", timeout)
        return found


def finish(process: subprocess.Popen[str], timeout: float = PATIENCE) -> tuple[int, str]:
    """Wait for a process; return its exit code and output. Kill it and its children after the timeout."""
    try:
        printed = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired as late:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"not ended after {timeout} s:\n{(late.output or b'').decode()}") from None
    return process.returncode, printed


def wait_until(there: Callable[[], bool], said: Callable[[], str], timeout: float = PATIENCE) -> None:
    """Wait until a condition holds; fail after the timeout with the message from ``said``."""
    deadline = time.monotonic() + timeout
    while not there():
        assert time.monotonic() < deadline, f"not after {timeout} s: {said()}"
        time.sleep(0.1)


def curve(output: Path) -> Curve:
    """Step, loss and gradient norm of every row of a run's metrics."""
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(output / "metrics.jsonl")]


def wait_for_step(output: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    wait_until(lambda: len(curve(output)) >= step, lambda: f"{output} is at step {len(curve(output))}")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster, shared by all tests of the session."""
    there = Cluster(tmp_path_factory.mktemp("cluster"))
    up = there.minicluster("up")
    if up.returncode == CANNOT:
        pytest.skip(f"no cluster on this machine: {up.stderr.strip()}")
    assert up.returncode == 0, up.stderr
    try:
        yield there
    finally:
        there.minicluster("down")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kill the ranks and jobs that a failed test left behind, which would slow down later tests."""
    yield
    if "cluster" in request.fixturenames:
        there: Cluster = request.getfixturevalue("cluster")
        for node in NODES:
            there.run(node, "pkill", "-KILL", "-f", "hmt_ds.train")
        there.check("head", "scancel", "--user=root")
        wait_until(lambda: not there.check("head", "squeue", "--noheader"), lambda: "jobs are left")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the launched run: a few seconds on two ranks, with one checkpoint at the end."""
    folder = tmp_path_factory.mktemp("materials")
    make_materials(folder)
    file = write_recipe(folder, stage=2)
    values = yaml.safe_load(file.read_text())
    values["training"]["steps"], values["checkpoint"]["every"] = STEPS, 1000
    values["data"]["validation"], values["evaluation"] = values["data"]["train"], {"segments_read": [1, 2]}
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """Losses of the same run on one machine without interruptions."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    words = ("bash", "launch/local.sh", str(recipe), "--ranks", "2", "--training.output", str(output))
    cluster.check("node0", *words)
    found = curve(output)
    assert [step for step, *_ in found] == list(range(1, STEPS + 1))
    return found
