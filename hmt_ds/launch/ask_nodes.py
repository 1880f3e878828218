"""Run a command on each machine of a launch, with a time limit, and read the lines of JSON that it prints."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hmt_ds.launch.check import SAME_PATH, SSH

GRACE = 15  # seconds beyond a command's limit until the connection to its machine is given up
TIMED_OUT, KILLED, NO_SSH = 124, 137, 255  # exit codes of timeout and ssh
SLURM_LINES = ("srun:", "slurmstepd:")  # how lines begin that are Slurm's and not the command's
FORWARDED = re.compile(r"PATH|LD_LIBRARY_PATH|PYTHONPATH|CUDA_HOME|(TORCH|NCCL|GLOO|UCX|OMP|DS|MALLOC)_\w+")
SECRET = re.compile(r"_(TOKEN|KEY|SECRET|PASSWORD)")

Through = Callable[[str, list[str]], list[str]]  # from a machine and a command to the words that run it there


class Answer(NamedTuple):
    """What a command on one machine of a launch printed.

    Attributes:
        values: the JSON objects, merged; those named ``finding`` are collected in a list.
        problem: why the command did not end well; None if it did.
    """

    values: dict[str, Any]
    problem: str | None


def forwarded() -> dict[str, str]:
    """Return the environment variables that commands on other machines need; ssh and mpirun do not pass them on."""
    return {name: value for name, value in os.environ.items() if FORWARDED.fullmatch(name) and not SECRET.search(name)}


def through_ssh(host: str, command: list[str]) -> list[str]:
    """Return the words of an ssh command that runs a command on a machine, in this folder and with this environment.

    Args:
        host: name of the machine.
        command: words of the command.
    """
    variables = [f"{name}={value}" for name, value in forwarded().items()]
    return [*SSH, host, f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(['env', *variables, *command])}"]


def through_srun(host: str, command: list[str]) -> list[str]:
    """Return the words of an srun command that runs a command on a node of this Slurm job, even if the node has failed.

    Args:
        host: name of the node.
        command: words of the command.
    """
    return ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}", *command]


def ask(through: Through, commands: dict[str, list[str]], seconds: int, at_once: int = 32) -> dict[str, Answer]:
    """Run a command on each machine; return what each printed, by machine.

    Args:
        through: makes the command line that runs a command on a machine, such as :func:`through_ssh`.
        commands: words of the command for each machine.
        seconds: time limit of each command.
        at_once: number of commands that run at the same time.
    """

    def ask_one(host: str) -> Answer:
        limited = ["timeout", "--kill-after=5", str(seconds), *commands[host]]
        return answer(through(host, limited), seconds)

    with ThreadPoolExecutor(max(1, at_once)) as pool:
        return dict(zip(commands, pool.map(ask_one, commands), strict=True))


def answer(words: list[str], seconds: int) -> Answer:
    """Run a command that should end itself within a time limit, and kill it otherwise; return what it printed.

    Args:
        words: the command.
        seconds: the time limit.
    """
    try:
        ran = subprocess.run(
            words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds + GRACE, check=False
        )
        code, printed, complained = ran.returncode, ran.stdout, ran.stderr
    except subprocess.TimeoutExpired as late:
        code, printed, complained = TIMED_OUT, (late.stdout or b"").decode(errors="replace"), ""
    values = merged(objects(printed))
    return Answer(values, problem_of(words, code, complained, seconds, values["finding"]) if code else None)


def problem_of(words: list[str], code: int, complained: str, seconds: int, found: list[list[str]]) -> str:
    """Describe in one line why a command on a machine failed.

    Args:
        words: the command.
        code: the command's exit code, not 0.
        complained: the command's standard error.
        seconds: the command's time limit.
        found: findings that the command printed before it failed.
    """
    since = f", nothing after its check of {found[-1][0]}" if found else ""
    lines = [line.strip() for line in complained.splitlines() if line.strip()] or [f"exit code {code}"]
    own = [line for line in lines if not line.startswith(SLURM_LINES)]
    if code in (TIMED_OUT, KILLED):
        return f"no answer within {seconds} s{since}"
    if words[0] == "ssh" and code == NO_SSH:
        return f"cannot be reached ({lines[-1]}): let `ssh {words[-2]}` work without a password"
    if not own:  # the command was not started: the first line is the cause of the others
        return f"{next((line for line in lines if 'error:' in line), lines[0])}: see sinfo"
    return own[-1] + (since or f" ({SAME_PATH})")


def objects(printed: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among the lines of a text; other lines, such as those of login scripts, are skipped.

    Args:
        printed: what a command printed.
    """
    for line in printed.splitlines():
        if line.startswith('{"'):
            with suppress(ValueError):
                yield json.loads(line)


def merged(all_of: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Merge JSON objects into one dict; the values of the key ``finding`` are collected in a list.

    Args:
        all_of: the JSON objects, in order.
    """
    values: dict[str, Any] = {"finding": []}
    for one in all_of:
        if "finding" in one:
            values["finding"].append(one["finding"])
        else:
            values |= one
    return values


def module(name: str, *words: str) -> list[str]:
    """Return the words of a command that runs a module of the project with the Python of this process.

    Args:
        name: dotted name of the module.
        words: the module's command-line arguments.
    """
    return [sys.executable, "-u", "-m", name, *words]
