"""The simulated cluster has separate nodes, ssh, MPI, and Slurm with arrays, dependencies and simulated GPUs."""

import pytest

pytestmark = pytest.mark.cluster


def words(printed: str) -> list[str]:
    """The printed words, sorted: ranks print in any order."""
    return sorted(printed.split())


def test_nodes_reach_each_other(cluster):
    assert words(cluster.check("head", "pdsh", "-R", "ssh", "-N", "-w", "node0,node1", "hostname")) == [
        "node0",
        "node1",
    ]
    assert cluster.check("node0", "ssh", "node1", "hostname") == "node1\n"
    printed = cluster.check("head", "mpirun", "--allow-run-as-root", "-np", "2", "-H", "node0,node1", "hostname")
    assert words(printed) == ["node0", "node1"]


def test_slurm_runs_and_numbers_gpus(cluster):
    assert words(cluster.check("head", "srun", "-N2", "--ntasks-per-node=1", "hostname")) == ["node0", "node1"]
    assert cluster.check("head", "srun", "-n1", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1\n"


def test_array_and_dependency(cluster, tmp_path):
    array = cluster.submit("--array=0-2", f"--output={tmp_path}/%a", "--wrap", "hostname")
    after = cluster.submit(f"--dependency=afterok:{array}", f"--output={tmp_path}/after", "--wrap", f"ls {tmp_path}")
    assert cluster.wait(after) == "COMPLETED"
    assert words((tmp_path / "after").read_text()) == ["0", "1", "2", "after"]
