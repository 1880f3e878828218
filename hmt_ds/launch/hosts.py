"""Read the names of a launch's machines, and the ranks on each, from a hostfile or from a Slurm job."""

import os
import re
import subprocess
from pathlib import Path

NOT_IN_A_JOB = "not in a Slurm job: submit the script with sbatch, or run it inside salloc"


class LaunchProblem(ValueError):
    """Raised if a launch on several machines cannot start; ``problems`` has a line for the user for each reason."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def read_hostfile(file: Path) -> dict[str, int]:
    """Return the number of ranks for each machine of a hostfile, in the order of its lines.

    Args:
        file: the hostfile; each line is ``NAME slots=NUMBER``.

    Raises:
        LaunchProblem: the file cannot be read or names no machine; or with every line that is malformed or repeats a
            name.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise LaunchProblem([f"{file}: {reason}; a hostfile has a line `NAME slots=8` for each machine"]) from None
    hosts: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        found = re.fullmatch(r"([\w.-]+)\s+slots=([1-9]\d*)", text)
        if text and not found:
            problems.append(f"{file}, line {number}: {text!r} must be NAME slots=NUMBER")
        elif found and found[1] in hosts:
            problems.append(f"{file}, line {number}: {found[1]} is listed twice: remove a line")
        elif found:
            hosts[found[1]] = int(found[2])
    if not hosts and not problems:
        problems.append(f"{file}: names no machine: write a line NAME slots=NUMBER for each")
    if problems:
        raise LaunchProblem(problems)
    return hosts


def slurm_hosts() -> dict[str, int]:
    """Return the number of ranks for each machine of the current Slurm job, in Slurm's order.

    Raises:
        LaunchProblem: outside a Slurm job.
    """
    if "SLURM_JOB_NODELIST" not in os.environ:
        raise LaunchProblem([NOT_IN_A_JOB])
    names = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
    ).stdout.split()
    counts: list[int] = []
    for part in os.environ.get("SLURM_TASKS_PER_NODE", f"1(x{len(names)})").split(","):  # 8(x3),4
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return dict(zip(names, counts, strict=True))
