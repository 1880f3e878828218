"""A launch that cannot start prints one line that names the machine, exits with 2, and leaves nothing running."""

import pytest
from conftest import NODES, SBATCH, SITE_PACKAGES, VENV, finish

pytestmark = pytest.mark.cluster

GOOD = "node0 slots=1\nnode1 slots=1\n"


@pytest.fixture
def launched(cluster, recipe, tmp_path):
    """Launch with a hostfile; return the exit code and the error lines."""

    def launch(hosts: str, script: str = "hostfile.sh", **environment: str) -> tuple[int, list[str]]:
        file, output = tmp_path / "hostfile", tmp_path / "run"
        file.write_text(hosts)
        words = ("bash", f"launch/{script}", str(recipe), "--training.output", str(output))
        code, printed = cluster.run("head", *words, HOSTFILE=str(file), **environment)
        assert not output.exists() and "Traceback" not in printed, printed
        assert not any(cluster.run(node, "pgrep", "-f", "hmt_ds.train")[1] for node in NODES)
        return code, [line for line in printed.splitlines() if line.startswith("error: ")]

    return launch


@pytest.mark.parametrize("script", ["hostfile.sh", "mpi.sh"])
def test_unreachable(launched, script):
    code, errors = launched("node0 slots=1\nnode9 slots=1\n", script)
    assert code == 2 and errors[0].startswith("error: node9: cannot be reached by ssh (")


def test_typing_errors(launched):
    code, errors = launched("node0 slots=1\nnode1 slot=1\nnode0 slots=2\nnode2 slots=\n")
    assert code == 2 and [error.partition(", ")[2] for error in errors] == [
        "line 2: 'node1 slot=1' must be NAME slots=NUMBER",
        "line 3: node0 is listed twice: remove a line",
        "line 4: 'node2 slots=' must be NAME slots=NUMBER",
    ]


def test_no_machine(launched):
    code, (error,) = launched("# none yet\n")
    assert code == 2 and error.endswith("hostfile: names no machine: write a line NAME slots=NUMBER for each")


def test_no_hostfile(cluster, recipe, tmp_path):
    code, printed = cluster.run("head", "bash", "launch/hostfile.sh", str(recipe), HOSTFILE=str(tmp_path / "none"))
    assert code == 2 and printed.startswith(f"error: {tmp_path}/none: No such file or directory; a hostfile has a line")


def test_too_few_gpus(launched):
    """The nodes have no GPUs; unless DS_ACCELERATOR says cpu, the launch requires them."""
    code, errors = launched(GOOD, DS_ACCELERATOR="")
    assert code == 2 and [error.split(": start")[0] for error in errors] == [
        "error: node0: 0 GPUs visible, 1 rank to start",
        "error: node1: 0 GPUs visible, 1 rank to start",
    ]


def test_port_is_taken(launched):
    code, errors = launched(GOOD, MASTER_PORT="22")  # sshd's
    said = "error: node0: port 22 cannot be used (Address already in use): set another MASTER_PORT, or none"
    assert code == 2 and errors == [said]


@pytest.mark.parametrize("port", ["many", "70000"])
def test_port_is_none(launched, port):
    code, errors = launched(GOOD, MASTER_PORT=port)
    assert code == 2 and errors == [f"error: MASTER_PORT: must be a number from 1 to 65535, got {port!r}"]


def test_module_is_missing_on_one_node(launched, cluster):
    with cluster.without("node1", SITE_PACKAGES / "deepspeed"):
        code, errors = launched(GOOD)
    assert code == 2 and errors == [
        f"error: node1: deepspeed not installed in {VENV}/bin/python: pip install -e . there"
    ]


def test_no_python_on_one_node(launched, cluster):
    with cluster.without("node1", VENV / "bin"):
        code, (error,) = launched(GOOD)
    assert code == 2 and error.startswith("error: node1: ") and f"{VENV}/bin/python: No such file" in error
    assert error.endswith("(the project and its Python must be at the same path on all machines)")


def test_the_same_inside_of_slurm(cluster, recipe, tmp_path):
    """A Slurm job names the node too, and is not requeued."""
    words = (*SBATCH, f"--output={tmp_path}/log", "launch/slurm.sbatch", str(recipe))
    with cluster.without("node1", VENV / "bin"):
        job = cluster.submit(*words, "--training.output", str(tmp_path / "run"))
        assert cluster.wait(job) == "FAILED" and cluster.job(job, "ExitCode") == "2:0"
    errors = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: node1: "), errors
    assert f"{VENV}/bin/python: No such file" in errors[0]


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_deepspeed.sbatch"])
def test_not_in_a_job(cluster, recipe, script):
    code, printed = cluster.run("head", "bash", f"launch/{script}", str(recipe))
    assert code == 2
    assert printed == "error: not in a Slurm job: submit the script with sbatch, or run it inside salloc\n"


@pytest.mark.parametrize("script", ["local.sh", "hostfile.sh", "mpi.sh", "torchrun.sh", "slurm.sbatch"])
def test_no_environment(cluster, recipe, tmp_path, script):
    code, printed = cluster.run("head", "bash", f"launch/{script}", str(recipe), VENV=str(tmp_path))
    assert code == 2 and printed.startswith(f"error: head: no Python in {tmp_path}: run bash launch/quickstart.sh once")


def test_a_wrong_recipe(cluster, recipe, tmp_path):
    """An error that only the ranks find is passed on as exit code 2."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(GOOD)
    for script in ("hostfile.sh", "mpi.sh"):
        words = ["bash", f"launch/{script}", str(recipe), "--data.train.source", "no.txt"]
        words += ["--training.output", str(tmp_path / "run")]
        with cluster.start("head", *words, HOSTFILE=str(hostfile)) as process:
            code, printed = finish(process)
        assert code == 2 and "error: data.train: 'no.txt' is neither a file nor a folder" in printed, (code, printed)
