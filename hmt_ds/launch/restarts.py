"""Limit how often a job restarts from the same checkpoint: ``python -m hmt_ds.launch.restarts TRIES RECIPE ...``.

A job that is requeued after every failure would restart forever if the failure is permanent. Each start appends a line
to the file ``starts`` in the run's folder; after TRIES starts from the same newest checkpoint, the next start exits
with 2. A new job counts from 0.
"""

import os
import sys
from pathlib import Path

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.launch.hosts import NOT_IN_A_JOB
from hmt_ds.reporting.progress import print_problems


def main(job: str, tries: int, recipe: str, overrides: list[str]) -> int:
    """Record a start of a Slurm job; return the exit code: 2 after too many starts from the same checkpoint, else 0.

    Args:
        job: Slurm's job id.
        tries: number of starts allowed from one checkpoint.
        recipe: path of the recipe, whose training.output holds the checkpoints.
        overrides: keys of the recipe to change, such as ``["--training.output", "runs/a"]``.
    """
    if not job:
        print_problems([NOT_IN_A_JOB])
        return 2
    try:
        folder = Path(load_recipe(recipe, overrides).training.output)
    except ConfigError as error:
        print_problems(error.problems)
        return 2
    earlier, newest = record_start(folder, job)
    if earlier < tries:
        return 0
    fact = f"{folder}: starts of job {job} that found {newest} and got no further: {earlier}."
    print_problems([f"{fact} It is not started again. Find out what ended them, then submit a new job"])
    return 2


def record_start(folder: Path, job: str) -> tuple[int, str]:
    """Record a start of a Slurm job in the run's folder.

    Args:
        folder: the run's folder.
        job: Slurm's job id.

    Returns:
        How often the same job started from the run's newest checkpoint before, and the checkpoint's name.
    """
    latest = folder / "checkpoints" / "latest"
    newest = latest.read_text().strip() if latest.exists() else "no checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starts").open("a+") as file:
        file.seek(0)
        earlier = file.read().splitlines().count(f"{job} {newest}")
        file.write(f"{job} {newest}\n")
    return earlier, newest


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m hmt_ds.launch.restarts TRIES RECIPE [--section.key value ...]")
    sys.exit(main(os.environ.get("SLURM_JOB_ID", ""), int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
