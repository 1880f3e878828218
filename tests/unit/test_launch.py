"""How a process finds its rank, for each launcher."""

import base64
import json
import os
import sys

import pytest

from hmt_ds.distributed import process_group
from hmt_ds.distributed.process_group import LaunchError, set_rank_variables
from hmt_ds.launch.local import world_info

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    "SLURM_NTASKS": "16",
}
FIRST = {"MASTER_ADDR": "node0"}
DEEPSPEED = {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"} | FIRST


def place(monkeypatch, given: dict[str, str]) -> dict[str, str]:
    """Return torch's variables, found in an environment that has only the given ones."""
    monkeypatch.setattr(os, "environ", dict(given))
    set_rank_variables()
    return {name: os.environ[name] for name in NAMES if name in os.environ}


@pytest.mark.parametrize(
    ("given", "rank", "local", "size", "here"),
    [
        ({}, "0", "0", "1", "1"),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"} | MPI | SRUN, "1", "1", "2", "2"),
        (DEEPSPEED, "2", "0", "4", "2"),
        (MPI | FIRST, "3", "1", "4", "2"),
        (SRUN | FIRST, "5", "1", "8", "2"),
        (SRUN | FIRST | {"SLURM_STEP_TASKS_PER_NODE": "3,2(x2),1"}, "5", "1", "8", "3"),
        (MPI | SRUN | FIRST, "3", "1", "4", "2"),  # mpirun inside a Slurm job
        (HYDRA | SRUN | FIRST, "3", "1", "4", "2"),
        ({"PMI_RANK": "5", "PMI_SIZE": "8"} | SRUN | FIRST, "5", "1", "8", "2"),  # srun --mpi=pmi2
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, "0", "0", "1", "1"),  # a batch script, without srun
    ],
    ids=[
        "alone",
        "torch",
        "deepspeed",
        "mpirun",
        "srun",
        "srun, unequal",
        "mpirun in Slurm",
        "MPICH in Slurm",
        "srun's PMI",
        "batch script",
    ],
)
def test_rank(monkeypatch, given, rank, local, size, here):
    found = place(monkeypatch, given)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == (rank, local, size)
    assert found["LOCAL_WORLD_SIZE"] == here
    assert found["MASTER_ADDR"] == given.get("MASTER_ADDR", "127.0.0.1")


def test_several_machines_need_a_master_address(monkeypatch):
    with pytest.raises(LaunchError, match="MASTER_ADDR is not set, and only 2 of 8 ranks"):
        place(monkeypatch, SRUN)


@pytest.mark.parametrize("given", [MPI, HYDRA], ids=["mpirun", "MPICH"])
def test_master_address_from_mpi(monkeypatch, given):
    """tests/cluster/test_launchers.py runs a real MPI."""
    monkeypatch.setattr(process_group, "rendezvous", lambda: {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "41234"})
    found = place(monkeypatch, given)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.7", "41234")
    assert place(monkeypatch, given | {"MASTER_PORT": "29400"})["MASTER_PORT"] == "29400"


def test_mpi_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(LaunchError, match="MASTER_ADDR is not set, and mpi4py, which finds"):
        place(monkeypatch, MPI)


@pytest.mark.parametrize(
    ("visible", "ranks", "devices"),
    [
        (None, 2, [0, 1]),
        ("", 2, [0, 1]),
        ("3,5,6", 2, ["3", "5"]),
        ("3", 2, [0, 1]),  # more than there are: the ranks say so
        ("GPU-8932f937", 1, ["GPU-8932f937"]),
    ],
)
def test_launcher_uses_the_visible_devices(monkeypatch, visible, ranks, devices):
    monkeypatch.setattr(os, "environ", {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert json.loads(base64.urlsafe_b64decode(world_info(ranks))) == {"localhost": devices}
