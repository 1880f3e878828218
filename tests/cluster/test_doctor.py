"""`hmt-ds launch ... doctor` on all nodes: what they measure together, and what each line says about an odd one."""

import shlex
from pathlib import Path

import pytest
from conftest import PROJECT, SITE_PACKAGES, Cluster, finish, wait_until

pytestmark = pytest.mark.cluster

WORDS = ("python", "-m", "hmt_ds", "launch")
ODD = f"{PROJECT}/tests/cluster/odd:{PROJECT}"


@pytest.fixture
def hostfile(tmp_path) -> Path:
    """A hostfile of the two nodes."""
    file = tmp_path / "hostfile"
    file.write_text("node0 slots=1\nnode1 slots=1\n")
    return file


def errors_in(printed: str) -> list[str]:
    """Return the lines of errors, without their first word."""
    return [line.removeprefix("error: ") for line in printed.splitlines() if line.startswith("error: ")]


def ask(cluster: Cluster, system: str, hostfile: Path, **environment: str) -> tuple[int, str]:
    """Run doctor on both nodes; return exit code and output."""
    words = [*WORDS, system, "doctor", "--folder", str(hostfile.parent)]
    words += ["--nodes", "2", "--gpus-per-node", "2"] if system == "slurm" else ["--hostfile", str(hostfile)]
    return cluster.run("head", *words, timeout=400, **environment)


@pytest.mark.parametrize("system", ["slurm", "ssh", "mpi"])
def test_both_nodes_are_well(cluster, hostfile, system):
    """Slurm's is an allocation of its own, because this is no job."""
    code, printed = ask(cluster, system, hostfile)
    assert code == 0 and not errors_in(printed), printed
    rows = [line for line in printed.splitlines() if line.startswith("node")]
    assert [row.split()[0] for row in rows] == ["node", "node0", "node1"], printed
    assert all(row.count("B/s") == 2 and "GB free" in row for row in rows[1:]) and "over 2 nodes (gloo)" in printed


def test_an_odd_node(cluster, hostfile):
    """NCCL_, DS_ and HMT_DS_ variables reach the nodes; time and a version differ on one of them."""
    code, printed = ask(cluster, "slurm", hostfile, PYTHONPATH=ODD, HMT_DS_ODD="node1")
    found = errors_in(printed)
    assert code == 2 and len(found) == 2, printed
    assert found[0].startswith("node1: packages differs: transformers 4.0.0, and transformers ")
    assert found[1].startswith(("node1: clock +30.", "node1: clock +29.9"))


def test_a_package_is_missing_on_one_node(cluster, hostfile):
    with cluster.without("node1", SITE_PACKAGES / "deepspeed"):
        code, printed = ask(cluster, "ssh", hostfile)
    assert code == 2 and "over 2 nodes" not in printed
    assert [error.partition(" not installed")[0] for error in errors_in(printed)] == ["node1: packages: deepspeed"]


def test_a_node_that_is_not_there(cluster, hostfile):
    hostfile.write_text(hostfile.read_text() + "node9 slots=1\n")
    code, printed = ask(cluster, "ssh", hostfile)
    unreached, unresolved = errors_in(printed)
    assert code == 2 and unreached.startswith("node9: cannot be reached (") and "`ssh node9`" in unreached
    assert unresolved.startswith("node0, node1: names: cannot resolve node9; ")
    assert "over 2 nodes (gloo)" in printed  # the others measure without it


def test_a_node_fails_inside_of_a_job(cluster, tmp_path):
    """It is named, and nothing waits for it longer than for the others."""
    ready, failed = tmp_path / "ready", tmp_path / "failed"
    words = shlex.join([*WORDS, "slurm", "doctor", "--folder", str(tmp_path)])
    script = f"touch {ready}; until [ -e {failed} ]; do sleep 0.1; done; exec {words}"
    with cluster.start("head", "salloc", "--no-kill", "--nodes=2", "bash", "-c", script) as process:
        wait_until(ready.exists, lambda: "no job")
        cluster.minicluster("fail", "node1")
        try:
            failed.touch()
            code, printed = finish(process)
        finally:
            wait_until(lambda: "down" in cluster.check("head", "sinfo", "-hn", "node1"), lambda: "node1 is up")
            cluster.minicluster("boot", "node1")
    (error,) = errors_in(printed)
    assert code == 2 and error.startswith("node1: srun: error: ") and "\nnode0  eth0" in printed, printed
