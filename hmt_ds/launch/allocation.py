"""Run ``hmt-ds launch slurm|ssh|mpi doctor``: each machine checks itself, then all of them exchange data."""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import flag
from hmt_ds.launch.ask_nodes import Answer, Through, answer, ask, forwarded, module, through_srun, through_ssh
from hmt_ds.launch.compare_nodes import print_comparison
from hmt_ds.launch.hosts import LaunchProblem, read_hostfile, slurm_hosts
from hmt_ds.launch.launch_options import LaunchOptions

NODE_SECONDS = 240  # for the checks of one machine; importing torch from a busy file system takes a minute
LINK_SECONDS = 120  # for the measurements between machines
ON_HOSTS = {"hostfile", "folder"}  # options that are used with ssh and mpi
IN_A_JOB = {"folder"}
FOR_A_JOB = IN_A_JOB | {"nodes", "gpus_per_node", "time", "partition", "account", "sbatch"}
MINUTES = "15"  # of the job, unless given


def examine_allocation(system: str, options: LaunchOptions, given: set[str], overrides: list[str]) -> int:
    """Check all machines of a launch; print a line per difference or problem, and a table; return the exit code.

    With ``slurm`` outside of a job, this process becomes an salloc that runs the same command inside a job.

    Args:
        system: how machines are reached: ``slurm``, ``ssh`` or ``mpi``.
        options: options of ``hmt-ds launch``.
        given: names of the options that the user has given.
        overrides: keys of a recipe to change, which this command does not take; must be empty.

    Returns:
        0, or 2 if a machine does not answer, cannot train, or differs from the others.

    Raises:
        ConfigError: wrong options, hostfile or folder.
    """
    in_job = system == "slurm" and "SLURM_JOB_ID" in os.environ
    allowed = ON_HOSTS if system != "slurm" else IN_A_JOB if in_job else FOR_A_JOB
    where = "slurm doctor inside a job" if in_job else f"{system} doctor"
    wrong = [f"{flag(name)}: not used by `launch {where}`: leave it out" for name in sorted(given - allowed)]
    wrong += [f"{word}: doctor reads no recipe: leave it out" for word in overrides if word.startswith("--")]
    if not options.folder.is_dir():
        wrong.append(f"--folder: {options.folder}: no such folder: name the folder that runs will be written to")
    if wrong:
        raise ConfigError(wrong)
    if system == "slurm" and not in_job:
        allocate(options, given)
    try:
        hosts = slurm_hosts() if system == "slurm" else read_hostfile(options.hostfile)
    except LaunchProblem as error:
        raise ConfigError(error.problems) from None
    return examine_hosts(system, hosts, options.folder.resolve())


def allocate(options: LaunchOptions, given: set[str]) -> NoReturn:
    """Replace this process by an salloc that runs `hmt-ds launch slurm doctor` in a Slurm job.

    Args:
        options: options of ``hmt-ds launch``, which give nodes, GPUs, time limit and so on.
        given: names of the options that the user has given.

    Raises:
        ConfigError: salloc is not installed.
    """
    if not shutil.which("salloc"):
        raise ConfigError(["salloc is not on the PATH: start this on a Slurm login node, or use launch ssh doctor"])
    words = ["salloc", f"--nodes={options.nodes}", f"--ntasks-per-node={options.gpus_per_node}"]
    words += [f"--gpus-per-node={options.gpus_per_node}", f"--time={options.time if 'time' in given else MINUTES}"]
    words += [f"--{name}={getattr(options, name)}" for name in ("partition", "account") if name in given]
    words += [f"--{option}" for option in options.sbatch]
    sys.stdout.flush()
    command = module("hmt_ds.cli", "launch", "slurm", "doctor", "--folder", str(options.folder))
    os.execvp("salloc", [*words, *command])


def examine_hosts(system: str, hosts: dict[str, int], folder: Path) -> int:
    """Check machines, measure bandwidth between those that can train, and print what was found; return the exit code.

    Args:
        system: how machines are reached: ``slurm``, ``ssh`` or ``mpi``.
        hosts: number of ranks for each machine.
        folder: where runs will be written.
    """
    print(f"asking       {', '.join(hosts)}", flush=True)
    through = through_srun if system == "slurm" else through_ssh
    cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    commands = {
        host: module("hmt_ds.launch.node_doctor", str(folder), "0" if cpu else str(ranks), *hosts)
        for host, ranks in hosts.items()
    }
    answers = ask(through, commands, NODE_SECONDS)
    ready = [host for host, one in answers.items() if can_meet(one)]
    links = measure(system, through, ready, answers) if len(ready) > 1 else {}
    return print_comparison(answers, links)


def can_meet(one: Answer) -> bool:
    """Return whether a machine can take part in training: it answered, has no error, and has an address for the others.

    Args:
        one: what the machine's check printed.
    """
    errors = [name for name, _, level, _ in one.values["finding"] if level == "error" and name != "names"]
    return one.problem is None and not errors and "meeting" in one.values


def measure(system: str, through: Through, ready: list[str], answers: dict[str, Answer]) -> dict[str, Answer]:
    """Start one rank on each machine, which measures clocks and bandwidth; return what each rank printed, by machine.

    Args:
        system: how ranks are started; ``mpi`` starts all of them with one command, whose output then counts for each.
        through: how to run a command on a machine, for other systems.
        ready: names of the machines.
        answers: what each machine's own check printed, with its address.
    """
    print(f"measuring    between {len(ready)} nodes", flush=True)
    address, port = answers[ready[0]].values["meeting"]
    place = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    rank = module("hmt_ds.distributed.links")
    if system == "mpi":
        return dict.fromkeys(ready, answer(["timeout", str(LINK_SECONDS), *mpirun(ready, place), *rank], LINK_SECONDS))
    commands = {}
    for number, host in enumerate(ready):
        own = {"RANK": str(number), "WORLD_SIZE": str(len(ready)), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        commands[host] = ["env", *(f"{name}={value}" for name, value in (place | own).items()), *rank]
    return ask(through, commands, LINK_SECONDS, at_once=len(ready))


def mpirun(hosts: list[str], variables: dict[str, str]) -> list[str]:
    """Return the words of a command line that starts a command with Open MPI once on each machine.

    Args:
        hosts: names of the machines, in the order of ranks.
        variables: environment variables to set there, beside those of this process.
    """
    words = ["mpirun", "-np", str(len(hosts)), "--host", ",".join(hosts), "--map-by", "ppr:1:node", "--bind-to", "none"]
    words += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    words += [word for name in forwarded() for word in ("-x", name)]
    return words + [word for name, value in variables.items() for word in ("-x", f"{name}={value}")]
