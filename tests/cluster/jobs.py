"""Submit jobs with `hmt-ds launch slurm` and observe them."""

from pathlib import Path

from conftest import Cluster, wait_until

LAUNCH = ("python", "-m", "hmt_ds.cli", "launch", "slurm")
SIZE = ("--nodes", "2", "--gpus-per-node", "1", "--time", "10")


def submit(cluster: Cluster, recipe: Path, output: Path, *more: str, **environment: str) -> str:
    """Run `hmt-ds launch slurm`; return the first job's id."""
    words = (*LAUNCH, str(recipe), *SIZE, "--training.output", str(output), *more)
    return cluster.check("head", *words, **environment).split()[1]


def log_of(output: Path) -> str:
    """The training job's output over all of its starts."""
    return "".join(file.read_text() for file in (output / "jobs").glob("train-*.out"))


def starts(output: Path) -> int:
    """The number of times that the job has started."""
    return len((output / "starts").read_text().splitlines()) if (output / "starts").exists() else 0


def wait_for_start(output: Path, number: int) -> None:
    """Wait until the job has started ``number`` times."""
    wait_until(lambda: starts(output) >= number, lambda: log_of(output))
