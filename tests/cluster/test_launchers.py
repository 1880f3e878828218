"""Every launcher gives the same losses, stops and resumes, and ends with rank 0's exit code."""

import shlex
from pathlib import Path

import pytest
from conftest import NODES, PROJECT, SBATCH, Cluster, curve, finish, wait_for_step, wait_until

from hmt_ds.distributed.stopping import STOPPED

pytestmark = pytest.mark.cluster

INTERACTIVE = {  # pattern that finds the script among the processes of its node
    "local.sh": "python -m hmt_ds.cli train",
    "hostfile.sh": "bash launch/hostfile.sh",
    "mpi.sh": "bash launch/mpi.sh",
    "mpi.sh --deepspeed": "bash launch/mpi.sh --deepspeed",
}


@pytest.fixture(scope="session")
def hostfile(tmp_path_factory) -> Path:
    """A hostfile of two machines with one rank each."""
    file = tmp_path_factory.mktemp("hosts") / "hostfile"
    file.write_text("node0 slots=1\nnode1 slots=1\n")
    return file


def launch(cluster: Cluster, script: str, hostfile: Path, recipe: Path, output: Path, *more: str, **environment: str):
    """Start one of the interactive scripts."""
    words = [*shlex.split(script), str(recipe), "--training.output", str(output), *more]
    words += ["--ranks", "2"] if script == "local.sh" else []
    return cluster.start("head", "bash", f"launch/{words[0]}", *words[1:], HOSTFILE=str(hostfile), **environment)


def signal_script(cluster: Cluster, script: str, number: str) -> None:
    """Send a signal to the script alone, as Ctrl-C or a scheduler does."""
    cluster.check("head", "pkill", f"-{number}", "-o", "-f", f"^{INTERACTIVE[script]}")


def ranks_on(cluster: Cluster, node: str) -> list[str]:
    """Process ids of the ranks on a node."""
    return cluster.run(node, "pgrep", "-f", "^[^ ]*python[^ ]* (-u )?-m hmt_ds.train")[1].split()


def test_one_run_through_all_interactive_launchers(cluster, recipe, hostfile, undisturbed, tmp_path):
    """Each launcher resumes the run and is stopped by another signal; the losses match an undisturbed run."""
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
    """Without a launch script, ranks get the master address through mpi4py."""
    output = tmp_path / "run"
    ranks = ("mpirun", "--allow-run-as-root", "-np", "2", "--host", "node0:1,node1:1", "-x", "PATH", "-x", "PYTHONPATH")
    passed = [word for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR") for word in ("-x", name)]
    rank = ("python", "-u", "-m", "hmt_ds.train", str(recipe), "--training.output", str(output))
    cluster.check("head", *ranks, *passed, *rank, PYTHONPATH=str(PROJECT))
    assert curve(output) == undisturbed


@pytest.mark.parametrize("script", ["hostfile.sh", "mpi.sh"])
def test_failed_ranks_are_restarted(cluster, recipe, hostfile, undisturbed, tmp_path, script):
    """With RESTARTS=1 the first failure restarts the ranks and the second ends the launch."""
    output = tmp_path / "run"
    with launch(cluster, script, hostfile, recipe, output, "--checkpoint.every", "5", RESTARTS="1") as process:
        for step in (8, 80):
            wait_for_step(output, step)
            cluster.check("node1", "kill", "-KILL", *ranks_on(cluster, "node1"))
            wait_until(lambda: not ranks_on(cluster, "node1"), lambda: "still there")
        code, printed = finish(process)
    assert code not in (0, STOPPED) and printed.count("restarting from the newest checkpoint") == 1, printed
    assert curve(output)[:80] == undisturbed[:80]


def test_torchrun_restarts_after_a_failed_rank(cluster, recipe, undisturbed, tmp_path):
    output = tmp_path / "run"
    words = ("bash", "launch/torchrun.sh", str(recipe), "--training.output", str(output), "--checkpoint.every", "5")
    with cluster.start("head", "srun", "-N2", "--ntasks-per-node=1", *words, RANKS="1") as process:
        wait_for_step(output, 8)
        cluster.check("node1", "kill", "-KILL", *ranks_on(cluster, "node1"))
        code, printed = finish(process)
    assert code == 0 and "resumed from" in printed, printed
    assert curve(output) == undisturbed


def test_torchrun_stops(cluster, recipe, tmp_path):
    """A stopped run is saved and not restarted."""
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
    """A dead rank ends even a rank that hangs and would never notice."""
    output = tmp_path / "run"
    with launch(cluster, "hostfile.sh", hostfile, recipe, output) as process:
        wait_for_step(output, 3)
        cluster.check("node0", "kill", "-STOP", *ranks_on(cluster, "node0"))
        cluster.check("node1", "kill", "-KILL", *ranks_on(cluster, "node1"))
        code, printed = finish(process)
    assert code not in (0, STOPPED), printed
    assert not ranks_on(cluster, "node0") and not ranks_on(cluster, "node1")


@pytest.mark.parametrize("script", ["local.sh", "hostfile.sh"])
def test_exit_code_is_true_where_deepspeeds_is_not(cluster, recipe, hostfile, tmp_path, script):
    """DeepSpeed's launchers exit with 0 when their child is killed, and leave the ranks running."""
    output = tmp_path / "run"
    with launch(cluster, script, hostfile, recipe, output, "--training.steps", "100000") as process:
        wait_for_step(output, 3)
        if script == "local.sh":
            launcher = cluster.check("head", "ps", "-o", "ppid=", "-p", ranks_on(cluster, "head")[0])
            cluster.check("head", "kill", "-KILL", launcher.strip())
        else:
            cluster.check("head", "pkill", "-KILL", "-f", "^pdsh -S")
        code, printed = finish(process)
    assert code == 1, printed
    for node in NODES:
        wait_until(lambda node=node: not ranks_on(cluster, node), lambda node=node: f"ranks left on {node}", timeout=30)


def test_a_cache_of_each_machine(cluster, recipe, hostfile, undisturbed, tmp_path):
    """With a cache that machines do not share (/dev/shm), each machine reads the documents once."""
    cache = "/dev/shm/hmt_ds_cache"
    with launch(cluster, "hostfile.sh", hostfile, recipe, tmp_path / "run", "--data.cache_dir", cache) as process:
        code, printed = finish(process)
    assert code == 0 and curve(tmp_path / "run") == undisturbed, printed
    for node in ("node0", "node1"):
        kept = sorted(Path(name).suffix for name in cluster.check(node, "ls", cache).split())
        assert kept == [".arrow", ".json", ".lock", ".sha256"]  # one file of tokens, and what belongs to it
