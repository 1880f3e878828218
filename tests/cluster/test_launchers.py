"""Every way of starting the ranks: the same losses, stopped and gone on with, and true exit codes."""

import shlex
from pathlib import Path

import pytest
from conftest import NODES, PROJECT, SBATCH, Cluster, curve, finish, wait_for_step, wait_until

from hmt_ds.distributed.stopping import STOPPED

pytestmark = pytest.mark.cluster

INTERACTIVE = {  # how each is found among the processes of the node that it was started on
    "local.sh": "python -m hmt_ds.cli train",
    "hostfile.sh": "bash launch/hostfile.sh",
    "mpi.sh": "bash launch/mpi.sh",
    "mpi.sh --deepspeed": "bash launch/mpi.sh --deepspeed",
}


@pytest.fixture(scope="session")
def hostfile(tmp_path_factory) -> Path:
    """Two machines, a rank each."""
    file = tmp_path_factory.mktemp("hosts") / "hostfile"
    file.write_text("node0 slots=1\nnode1 slots=1\n")
    return file


def launch(cluster: Cluster, script: str, hostfile: Path, recipe: Path, output: Path, *more: str, **environment: str):
    """Start one of the interactive scripts."""
    words = [*shlex.split(script), str(recipe), "--training.output", str(output), *more]
    words += ["--ranks", "2"] if script == "local.sh" else []
    return cluster.start("head", "bash", f"launch/{words[0]}", *words[1:], HOSTFILE=str(hostfile), **environment)


def signal_script(cluster: Cluster, script: str, number: str) -> None:
    """As a person's Ctrl-C or a scheduler would: to the script alone."""
    cluster.check("head", "pkill", f"-{number}", "-o", "-f", f"^{INTERACTIVE[script]}")


def ranks_on(cluster: Cluster, node: str) -> list[str]:
    """Process ids of the ranks on a node."""
    return cluster.run(node, "pgrep", "-f", "^[^ ]*python[^ ]* (-u )?-m hmt_ds.train")[1].split()


def test_one_run_through_all_interactive_launchers(cluster, recipe, hostfile, undisturbed, tmp_path):
    """Each stops it with another signal and the next one goes on: the losses are those of one undisturbed run."""
    output, at = tmp_path / "run", 0
    signals = dict(zip(INTERACTIVE, ("INT", "TERM", "USR1", "TERM"), strict=True))
    for script, number in signals.items():
        with launch(cluster, script, hostfile, recipe, output, "--checkpoint.resume", "auto") as process:
            wait_for_step(output, at + 3)
            signal_script(cluster, script, number)
            code, printed = finish(process)
        assert code == STOPPED, f"{script}: {code}\n{printed}"
        assert f"step {at}" in printed if at else "resumed" not in printed, printed
        at = len(curve(output))
        assert at < len(undisturbed) and f"stopped after step {at};" in printed, printed
        assert not ranks_on(cluster, "node0") and not ranks_on(cluster, "node1")
    with launch(cluster, "hostfile.sh", hostfile, recipe, output, "--checkpoint.resume", "auto") as process:
        code, printed = finish(process)
    assert code == 0, printed
    assert curve(output) == undisturbed


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_deepspeed.sbatch"])
def test_slurm(cluster, recipe, undisturbed, tmp_path, script):
    output = tmp_path / "run"
    words = (f"launch/{script}", str(recipe), "--training.output", str(output))
    job = cluster.submit(*SBATCH, f"--output={tmp_path}/log", *words)
    assert cluster.wait(job) == "COMPLETED", (tmp_path / "log").read_text()
    assert curve(output) == undisturbed


def test_mpirun_alone(cluster, recipe, undisturbed, tmp_path):
    """MPI is asked where the ranks meet."""
    output = tmp_path / "run"
    ranks = ("mpirun", "--allow-run-as-root", "-np", "2", "--host", "node0:1,node1:1", "-x", "PATH", "-x", "PYTHONPATH")
    passed = [word for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR") for word in ("-x", name)]
    rank = ("python", "-u", "-m", "hmt_ds.train", str(recipe), "--training.output", str(output))
    cluster.check("head", *ranks, *passed, *rank, PYTHONPATH=str(PROJECT))
    assert curve(output) == undisturbed


@pytest.mark.parametrize("script", ["hostfile.sh", "mpi.sh"])
def test_failed_ranks_start_anew(cluster, recipe, hostfile, undisturbed, tmp_path, script):
    """Once; the next failure is the end."""
    output = tmp_path / "run"
    with launch(cluster, script, hostfile, recipe, output, "--checkpoint.every", "5", RESTARTS="1") as process:
        for step in (8, 80):
            wait_for_step(output, step)
            cluster.check("node1", "kill", "-KILL", *ranks_on(cluster, "node1"))
            wait_until(lambda: not ranks_on(cluster, "node1"), lambda: "still there")
        code, printed = finish(process)
    assert code not in (0, STOPPED) and printed.count("they start anew") == 1, printed
    assert curve(output)[:80] == undisturbed[:80]


def test_torchrun_starts_anew_when_a_rank_has_failed(cluster, recipe, undisturbed, tmp_path):
    output = tmp_path / "run"
    words = ("bash", "launch/torchrun.sh", str(recipe), "--training.output", str(output), "--checkpoint.every", "5")
    with cluster.start("head", "srun", "-N2", "--ntasks-per-node=1", *words, RANKS="1") as process:
        wait_for_step(output, 8)
        cluster.check("node1", "kill", "-KILL", *ranks_on(cluster, "node1"))
        code, printed = finish(process)
    assert code == 0 and "resumed from" in printed, printed
    assert curve(output) == undisturbed


def test_torchrun_stops(cluster, recipe, tmp_path):
    """Saved, and not started anew."""
    output = tmp_path / "run"
    words = ("bash", "launch/torchrun.sh", str(recipe), "--training.output", str(output), "--training.steps", "100000")
    with cluster.start("head", "srun", "-N2", "--ntasks-per-node=1", *words, RANKS="1") as process:
        wait_for_step(output, 3)
        for node in ("node0", "node1"):
            cluster.check(node, "pkill", "-USR1", "-o", "-f", "bash launch/torchrun.sh")
        code, printed = finish(process)
    assert code not in (0, None) and f"stopped after step {len(curve(output))};" in printed, printed
    assert not ranks_on(cluster, "node0") and not ranks_on(cluster, "node1")


def test_a_dead_rank_ends_the_others(cluster, recipe, hostfile, tmp_path):
    """Also one that hangs, and so would never notice."""
    output = tmp_path / "run"
    with launch(cluster, "hostfile.sh", hostfile, recipe, output) as process:
        wait_for_step(output, 3)
        cluster.check("node0", "kill", "-STOP", *ranks_on(cluster, "node0"))
        cluster.check("node1", "kill", "-KILL", *ranks_on(cluster, "node1"))
        code, printed = finish(process)
    assert code not in (0, STOPPED), printed
    assert not ranks_on(cluster, "node0") and not ranks_on(cluster, "node1")


@pytest.mark.parametrize(("script", "child"), [("local.sh", "deepspeed.launcher.launch"), ("hostfile.sh", "pdsh")])
def test_exit_code_is_true_where_deepspeeds_is_not(cluster, recipe, hostfile, tmp_path, script, child):
    """deepspeed's command ends with 0 when what it started is killed, and leaves the ranks running."""
    output = tmp_path / "run"
    with launch(cluster, script, hostfile, recipe, output, "--training.steps", "100000") as process:
        wait_for_step(output, 3)
        pattern = f"^[^ ]*python.*-m {child}" if script == "local.sh" else f"^{child} -S"
        cluster.check("head", "pkill", "-KILL", "-f", pattern)
        code, printed = finish(process)
    assert code == 1, printed
    for node in NODES:
        wait_until(lambda node=node: not ranks_on(cluster, node), lambda node=node: f"ranks left on {node}", timeout=30)


def test_a_cache_of_each_machine(cluster, recipe, hostfile, undisturbed, tmp_path):
    """Each reads the documents itself, once: /dev/shm is a node's own."""
    cache = "/dev/shm/hmt_ds_cache"
    with launch(cluster, "hostfile.sh", hostfile, recipe, tmp_path / "run", "--data.cache_dir", cache) as process:
        code, printed = finish(process)
    assert code == 0 and curve(tmp_path / "run") == undisturbed, printed
    for node in ("node0", "node1"):
        assert len(cluster.check(node, "ls", cache).split()) == 1
