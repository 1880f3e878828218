"""``hmt-ds launch slurm RECIPE``: write Slurm job scripts and submit them, each to start after the previous one."""

import shlex
import shutil
import subprocess
from pathlib import Path

from hmt_ds.config.config_error import ConfigError
from hmt_ds.launch.chain import plan_jobs
from hmt_ds.launch.launch_options import LaunchOptions


def launch(recipe_file: str, options: LaunchOptions, overrides: list[str], problems: list[str]) -> None:
    """Write the Slurm job scripts of a training run and submit them, or print them with ``--dry-run``.

    Args:
        recipe_file: recipe to train.
        options: options of ``hmt-ds launch``.
        overrides: keys of the recipe to change, such as ``["--training.steps", "10"]``.
        problems: problems of the options, reported together with those of the recipes.

    Raises:
        ConfigError: with a line for each problem.
    """
    jobs = plan_jobs(recipe_file, options, overrides, problems)
    if not options.dry_run and not shutil.which("sbatch"):
        raise ConfigError(
            ["sbatch is not on the PATH: launch from a Slurm login node, or print the scripts with --dry-run"]
        )
    previous = None
    for job in jobs:
        file = unused_name(job.folder / "jobs" / f"{job.command}.sbatch")
        words = ["sbatch", "--parsable"]
        if previous:
            # of two arrays, each run waits only for the run with its own index
            kind = "aftercorr" if job.allocation.array else "afterok"
            words += [f"--dependency={kind}:{previous}", "--kill-on-invalid-dep=yes"]
        words.append(str(file))
        if options.dry_run:
            previous = f"({job.command})"
            print(f"# {shlex.join(words)}\n\n{job.script(file)}")
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(job.script(file))
        previous = submit(words)
        print(f"job {previous}   {file}")
    if not options.dry_run:
        print(f"next        hmt-ds status {jobs[0].folder}")


def submit(words: list[str]) -> str:
    """Submit a job with sbatch; return Slurm's id of the job.

    Args:
        words: the whole sbatch command; the last word is the script.

    Raises:
        ConfigError: with sbatch's error messages.
    """
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    if run.returncode:
        problems = [f"{words[-1]}: {line}" for line in run.stderr.splitlines()]
        raise ConfigError(
            problems
            or [
                f"{words[-1]}: sbatch exited with code {run.returncode} and no message: try it by hand, "
                f"{shlex.join(words)}"
            ]
        )
    return run.stdout.strip().split(";")[0]


def unused_name(file: Path) -> Path:
    """Return the path of a script to write: ``file`` if it does not exist yet, else the same name with a number.

    An existing script is not overwritten, because the user may have edited it.

    Args:
        file: the preferred path.
    """
    number, found = 1, file
    while found.exists():
        number += 1
        found = file.with_stem(f"{file.stem}-{number}")
    return found
