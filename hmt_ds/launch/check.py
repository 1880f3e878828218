"""Are the machines ready? ``python -m hmt_ds.launch.check hostfile FILE`` for a launch by ssh, ``slurm`` inside a job.

Every machine runs `hmt_ds.launch.machine`. Prints settings that a launch script evaluates; or a line for each problem,
with the machine's name, and ends with 2.
"""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hmt_ds.launch.hosts import LaunchProblem, read_hostfile, slurm_hosts
from hmt_ds.reporting.progress import print_problems

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
SAME_PATH = "the project and its Python must be at the same path on all machines"
USAGE = "usage: python -m hmt_ds.launch.check hostfile FILE | slurm"


def main(words: list[str]) -> int:
    """Check, and print the settings; returns the exit code."""
    try:
        check_port(os.environ.get("MASTER_PORT", "1"))
        match words:
            case ["hostfile", file]:
                hosts = read_hostfile(Path(file))
                said = ask_by_ssh(hosts)
            case ["slurm"]:
                hosts = slurm_hosts()
                said = ask_by_srun(hosts)
            case _:
                raise LaunchProblem([USAGE])
        settings = settings_of(hosts, said)
    except LaunchProblem as error:
        print_problems(error.problems)
        return 2
    for name, value in settings.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def check_port(text: str) -> None:
    """What the user has set must be one.

    Raises:
        LaunchProblem: if it is none.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise LaunchProblem([f"MASTER_PORT: must be a number from 1 to 65535, got {text!r}"])


def probe_words(hosts: dict[str, int], host: str) -> list[str]:
    """The probe's command: towards the first machine, or from there to the last; the port is the first machine's."""
    names = list(hosts)
    first = host == names[0]
    gpus = 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else hosts[host]
    port = os.environ.get("MASTER_PORT", "0") if first else "0"
    return [sys.executable, "-m", "hmt_ds.launch.machine", names[-1] if first else names[0], str(gpus), port]


def ask_by_ssh(hosts: dict[str, int]) -> dict[str, Any]:
    """What each machine says, or a line of what is wrong with it."""

    def ask(host: str) -> Any:
        remote = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(probe_words(hosts, host))}"
        run = subprocess.run(
            [*SSH, host, remote], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if run.returncode == 0:
            return json.loads(run.stdout.splitlines()[-1])
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        return f"cannot be reached by ssh ({last})" if run.returncode == 255 else f"{last} ({SAME_PATH})"

    with ThreadPoolExecutor(32) as pool:
        return dict(zip(hosts, pool.map(ask, hosts), strict=True))


def ask_by_srun(hosts: dict[str, int]) -> dict[str, Any]:
    """The same inside of a Slurm job. Each machine picks its own command by its number."""
    commands = {str(number): probe_words(hosts, host) for number, host in enumerate(hosts)}
    choose = "\n".join(f"{number}) exec {shlex.join(command)} ;;" for number, command in commands.items())
    srun = ["srun", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1", "--label", "--wait=0"]
    shell = ["bash", "-c", f"case $SLURM_NODEID in\n{choose}\nesac"]
    run = subprocess.run([*srun, *shell], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    answers = by_number(run.stdout)
    errors = by_number(run.stderr)
    unlabelled = [line for line in run.stderr.splitlines() if line.startswith(("srun:", "slurmstepd:"))]
    causes = [line for line in unlabelled if "error:" in line] or unlabelled  # the first: others come of it
    said: dict[str, Any] = {}
    for number, host in enumerate(hosts):
        if answer := answers.get(number):
            said[host] = json.loads(answer)
        elif error := errors.get(number):
            said[host] = f"{error} ({SAME_PATH})"
        else:
            said[host] = f"no answer ({(causes or ['srun says nothing'])[0]})"
    return said


def by_number(labelled: str) -> dict[int, str]:
    """The last line of each task, from what `srun --label` prints."""
    pairs = (line.split(": ", 1) for line in labelled.splitlines() if line.split(":")[0].strip().isdigit())
    return {int(pair[0]): pair[1] for pair in pairs if len(pair) == 2}


def settings_of(hosts: dict[str, int], said: dict[str, Any]) -> dict[str, str]:
    """Variables for the launcher and the ranks.

    Raises:
        LaunchProblem: with all that the machines have said is wrong.
    """
    problems = [f"{host}: {answer}" for host, answer in said.items() if isinstance(answer, str)]
    answers = {host: answer for host, answer in said.items() if isinstance(answer, dict)}
    problems += [f"{host}: {problem}" for host, answer in answers.items() for problem in answer["problems"]]
    if problems:
        raise LaunchProblem(problems)
    first = next(iter(answers.values()))
    settings = {
        "HMT_DS_HOSTS": ",".join(hosts),
        "HMT_DS_RANKS": str(sum(hosts.values())),
        "MASTER_ADDR": first["address"] if len(hosts) > 1 else "127.0.0.1",
        "MASTER_PORT": str(first["port"]),
    }
    # gloo takes the address that the host's own name stands for, which may be 127.0.1.1: name the interface
    interfaces = {answer["interface"] for answer in answers.values()} - {None}
    if len(hosts) > 1 and len(interfaces) == 1:
        names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
        settings |= dict.fromkeys(names, interfaces.pop())
    return settings


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
