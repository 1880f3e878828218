"""How often a job may start from the same checkpoint: ``python -m hmt_ds.launch.restarts TRIES RECIPE ...``, in a job.

A job that goes back into the queue whenever it fails would do so for ever if something is wrong that another start does
not cure. Each start leaves a line in ``starts`` in the run's folder; when TRIES starts have found the same newest
checkpoint, the next one ends with 2. A new job begins to count anew.
"""

import os
import sys
from pathlib import Path

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.launch.hosts import NOT_IN_A_JOB
from hmt_ds.reporting.progress import print_problems


def main(job: str, tries: int, recipe: str, overrides: list[str]) -> int:
    """Note a start; returns the exit code."""
    if not job:
        print_problems([NOT_IN_A_JOB])
        return 2
    try:
        folder = Path(load_recipe(recipe, overrides).training.output)
    except ConfigError as error:
        print_problems(error.problems)
        return 2
    earlier, newest = note_start(folder, job)
    if earlier < tries:
        return 0
    said = f"{folder}: starts of job {job} that found {newest} and got no further: {earlier}. It is not started"
    print_problems([f"{said} again. See what ended them; a new job begins to count anew"])
    return 2


def note_start(folder: Path, job: str) -> tuple[int, str]:
    """Note a start of a job; returns how many others found the same newest checkpoint, and which that is."""
    latest = folder / "checkpoints" / "latest"
    newest = latest.read_text().strip() if latest.exists() else "no checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starts").open("a+") as notes:
        notes.seek(0)
        earlier = notes.read().splitlines().count(f"{job} {newest}")
        notes.write(f"{job} {newest}\n")
    return earlier, newest


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m hmt_ds.launch.restarts TRIES RECIPE [--section.key value ...]")
    sys.exit(main(os.environ.get("SLURM_JOB_ID", ""), int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
