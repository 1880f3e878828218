"""The options of `hmt-ds launch`. Imports no torch: the command line builds its help from this module."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options
from hmt_ds.config.sections import STRICT

# minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds
TIME = r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}"


def like(pattern: str, example: str) -> AfterValidator:
    """Return a pydantic validator that rejects text which does not match a regular expression.

    Args:
        pattern: the regular expression, which must match the whole text.
        example: description of valid text, for the error message.
    """

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {example}, got {text!r}")
        return text

    return AfterValidator(check)


def is_file(image: str) -> bool:
    """Return whether a container image is named by a file path, rather than by a name in a registry.

    Args:
        image: the image.
    """
    return image.endswith((".sif", ".sqsh"))


def check_nodes(text: str) -> str:
    """Check a value of the option --nodes, and return it unchanged.

    Args:
        text: a number of nodes, or a range such as 2-8.

    Raises:
        ValueError: ``text`` has no such form.
    """
    numbers = [int(number) if number.isdecimal() else 0 for number in text.split("-", 1)]
    if min(numbers) < 1 or numbers != sorted(numbers):
        raise ValueError(f"must be a whole number of at least 1, or a range such as 2-8, got {text!r}")
    return text


Name = Annotated[str, like(r"\S+", "a name without blanks")]
SbatchOption = Annotated[str, like(r"[a-z][a-z-]+(=\S+)?", "like exclusive or qos=high")]


@dataclass(frozen=True, config=STRICT)
class LaunchOptions(Options):
    """Options of `hmt-ds launch`; each field's docstring is its help text."""

    nodes: Annotated[str, "N", AfterValidator(check_nodes)] = "1"
    """number of nodes; with training.elastic also a range such as 2-8, from which Slurm picks"""
    gpus_per_node: AtLeastOne = 8
    """number of GPUs to request on each node; one rank runs on each GPU"""
    time: Annotated[str, "LIMIT", like(TIME, "like 90 (minutes), 12:00:00 or 2-12 (days-hours)")] = "24:00:00"
    """Slurm time limit of the job, which counts from each start: minutes, hours:minutes:seconds, or days-hours"""
    partition: Annotated[Name | None, "NAME"] = None
    """Slurm partition to submit to (default: the cluster's default partition)"""
    account: Annotated[Name | None, "NAME"] = None
    """Slurm account to charge (default: the user's default account)"""
    sbatch: Annotated[tuple[SbatchOption, ...], "OPTION"] = ()
    """further option for sbatch, without its dashes, such as qos=high; can be repeated"""
    container: Annotated[Name | None, "IMAGE"] = None
    """run everything in this container: a .sif file for Apptainer; a .sqsh file or an image's name for
    Slurm's plugin Pyxis (default: no container; the environment that hmt-ds runs in must be on all nodes)"""
    container_mount: Annotated[tuple[Name, ...], "PATH"] = ()
    """file or folder to mount into the container at the same path; can be repeated (the working folder, the project,
    the run and Hugging Face's cache are mounted anyway)"""
    array: AtLeastOne | None = None
    """submit a job array of this many runs, with seeds training.seed, training.seed + 1, ..., in folders seed_N of
    training.output (default: one run)"""
    tries: AtLeastOne = 3
    """how many times the job may start from the same checkpoint before it is no longer restarted; each new
    checkpoint sets the count to 0"""
    then: Annotated[tuple[str, ...], "COMMAND"] = ()
    """command for a further job that starts when the previous one has succeeded, such as evaluate, "convert --merge" or
    "train other.yaml"; can be repeated"""
    dry_run: bool = False
    """print the job scripts without writing or submitting them"""
    hostfile: Annotated[FilePath, "FILE"] = Path("hostfile")
    """only for `launch ssh doctor` and `launch mpi doctor`: file that names the machines to check, with a line `NAME
    slots=8` for each"""
    folder: Annotated[FilePath, "FOLDER"] = Path()
    """with doctor, folder on the disk that runs will be written to, instead of the current one"""

    def conflicts(self) -> list[str]:
        """Return an error line for an image or mounted path that does not exist, and for mounts without an image."""
        if self.container is None:
            return ["--container-mount: only with --container: add it, or remove the mounts"] * bool(
                self.container_mount
            )
        given = [("--container", self.container)] if is_file(self.container) else []
        given += [("--container-mount", path) for path in self.container_mount]
        return [f"{name}: {path} does not exist: correct the path" for name, path in given if not Path(path).exists()]

    @property
    def fewest_nodes(self) -> int:
        """Smallest number of nodes that the Slurm job accepts."""
        return int(self.nodes.split("-")[0])

    @property
    def most_nodes(self) -> int:
        """Largest number of nodes that the Slurm job accepts."""
        return int(self.nodes.split("-")[-1])
