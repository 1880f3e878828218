"""Check all machines before a launch: ``python -m hmt_ds.launch.check hostfile FILE`` with ssh, ``slurm`` inside a job.

Runs `hmt_ds.launch.machine` on every machine. Prints environment variables for a launch script to evaluate; or exits
with 2 and prints a line for each problem, with the machine's name. In a container Slurm's commands are missing: then
the job script asks the nodes, and ``reports RANKS HOST ...`` reads their answers.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hmt_ds.launch.hosts import LaunchProblem, read_hostfile, slurm_hosts
from hmt_ds.launch.machine import Report
from hmt_ds.reporting.progress import print_problems

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
SAME_PATH = "the project and its Python must be at the same path on all machines"
USAGE = "usage: python -m hmt_ds.launch.check hostfile FILE | slurm | reports RANKS HOST ..."


def main(words: list[str]) -> int:
    """Check all machines of a launch and print environment variables for the launch script.

    Args:
        words: arguments of the command: ``hostfile FILE``, ``slurm``, or ``reports RANKS HOST ...`` with the number of
            ranks per machine and all machines; the standard input is then what `srun --label` printed.

    Returns:
        The exit code: 0, or 2 if a machine has a problem.
    """
    try:
        check_port(os.environ.get("MASTER_PORT", "1"))
        match words:
            case ["hostfile", file]:
                hosts = read_hostfile(Path(file))
                reports = probe_with_ssh(hosts)
            case ["slurm"]:
                hosts = slurm_hosts()
                reports = probe_with_srun(hosts)
            case ["reports", ranks, *names]:
                hosts = dict.fromkeys(names, int(ranks))
                reports = reports_in(sys.stdin.read(), "", hosts)
            case _:
                raise LaunchProblem([USAGE])
        variables = launch_variables(hosts, reports)
    except LaunchProblem as error:
        print_problems(error.problems)
        return 2
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def check_port(text: str) -> None:
    """Check the value of the environment variable MASTER_PORT, if the user has set it.

    Args:
        text: the value.

    Raises:
        LaunchProblem: the value is not a number from 1 to 65535.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise LaunchProblem([f"MASTER_PORT: must be a number from 1 to 65535, got {text!r}"])


def probe_command(hosts: dict[str, int], host: str) -> list[str]:
    """Return the command that checks one machine and its connection to another machine of the launch.

    The first machine tries to reach the last one, all others the first. MASTER_PORT must be free only on the first
    machine, where the ranks' process group is created.

    Args:
        hosts: number of ranks for each machine, first machine first.
        host: the machine to check.

    Returns:
        Words of a command line that runs `hmt_ds.launch.machine`.
    """
    names = list(hosts)
    first = host == names[0]
    gpus = 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else hosts[host]
    port = os.environ.get("MASTER_PORT", "0") if first else "0"
    return [sys.executable, "-m", "hmt_ds.launch.machine", names[-1] if first else names[0], str(gpus), port]


def probe_with_ssh(hosts: dict[str, int]) -> dict[str, Report | str]:
    """Check all machines over ssh.

    Args:
        hosts: number of ranks for each machine.

    Returns:
        For each machine its report, or a line that says why the machine sent none.
    """

    def probe(host: str) -> Report | str:
        remote = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(probe_command(hosts, host))}"
        run = subprocess.run(
            [*SSH, host, remote], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if run.returncode == 0:
            report: Report = json.loads(run.stdout.splitlines()[-1])
            return report
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        failed = f"cannot be reached by ssh ({last}): let ssh log in without a password"
        return failed if run.returncode == 255 else f"{last} ({SAME_PATH})"

    with ThreadPoolExecutor(32) as pool:
        return dict(zip(hosts, pool.map(probe, hosts), strict=True))


def probe_with_srun(hosts: dict[str, int]) -> dict[str, Report | str]:
    """Check all nodes of a Slurm job with srun, which starts one shell script on every node.

    Args:
        hosts: number of ranks for each node.

    Returns:
        For each node its report, or a line that says why the node sent none.
    """
    commands = {str(number): probe_command(hosts, host) for number, host in enumerate(hosts)}
    choose = "\n".join(f"{number}) exec {shlex.join(command)} ;;" for number, command in commands.items())
    srun = ["srun", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1", "--label", "--wait=0"]
    shell = ["bash", "-c", f"case $SLURM_NODEID in\n{choose}\nesac"]
    run = subprocess.run([*srun, *shell], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return reports_in(run.stdout, run.stderr, hosts)


def reports_in(printed: str, complained: str, hosts: Iterable[str]) -> dict[str, Report | str]:
    """Return what each node reported to `srun --label`, or a line that says why it reported nothing.

    Args:
        printed: srun's standard output.
        complained: srun's standard error.
        hosts: names of the nodes, in the order of srun's tasks.
    """
    outputs = last_lines(printed)
    errors = last_lines(complained)
    unlabelled = [line for line in complained.splitlines() if line.startswith(("srun:", "slurmstepd:"))]
    causes = [line for line in unlabelled if "error:" in line] or unlabelled  # the first one causes the others
    reports: dict[str, Report | str] = {}
    for number, host in enumerate(hosts):
        if output := outputs.get(number):
            reports[host] = json.loads(output)
        elif error := errors.get(number):
            reports[host] = f"{error} ({SAME_PATH})"
        else:
            reports[host] = f"no answer ({(causes or ['srun printed no error'])[0]})"
    return reports


def last_lines(labelled: str) -> dict[int, str]:
    """Return the last line that each task of srun printed, by task number.

    Args:
        labelled: output of `srun --label`, whose lines begin with the task's number.
    """
    pairs = (line.split(": ", 1) for line in labelled.splitlines() if line.split(":")[0].strip().isdigit())
    return {int(pair[0]): pair[1] for pair in pairs if len(pair) == 2}


def launch_variables(hosts: dict[str, int], reports: dict[str, Report | str]) -> dict[str, str]:
    """Return environment variables for the launcher and the ranks, from the machines' reports.

    Args:
        hosts: number of ranks for each machine, first machine first.
        reports: for each machine its report, or a line that says why the machine sent none.

    Raises:
        LaunchProblem: with every problem of every machine.
    """
    problems = [f"{host}: {report}" for host, report in reports.items() if isinstance(report, str)]
    ready = {host: report for host, report in reports.items() if not isinstance(report, str)}
    problems += [f"{host}: {problem}" for host, report in ready.items() for problem in report["problems"]]
    if problems:
        raise LaunchProblem(problems)
    first = next(iter(ready.values()))
    variables = {
        "HMT_DS_HOSTS": ",".join(hosts),
        "HMT_DS_RANKS": str(sum(hosts.values())),
        "MASTER_ADDR": str(first["address"]) if len(hosts) > 1 else "127.0.0.1",
        "MASTER_PORT": str(first["port"]),
    }
    # gloo would use the address that the host's own name resolves to, which may be 127.0.1.1
    interfaces = {report["interface"] for report in ready.values() if report["interface"]}
    if len(hosts) > 1 and len(interfaces) == 1:
        names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
        variables |= dict.fromkeys(names, interfaces.pop())
    return variables


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
