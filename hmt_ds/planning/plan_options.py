"""The options of `hmt-ds plan`. Imports no torch: the command line builds its help from this module."""

import argparse
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import AtLeastOne, FilePath, Options, add_options, flag, read_options
from hmt_ds.config.sections import STRICT, fields_of
from hmt_ds.config.value_checks import check_picture
from hmt_ds.memory.settings import Mode
from hmt_ds.planning.cluster import Fleet, fleet_of, read_gpus, read_link
from hmt_ds.planning.shapes import SHAPES

# Limits that keep the command to a few seconds.
MAX_ACTIONS = 100_000  # stages x segments x micro-batches of a schedule
MAX_ROWS = 512  # rows x segments of a comparison
PositiveNumber = Annotated[float, Field(gt=0)]


def check_shape(name: str) -> str:
    """Return the name of a known Llama size, such as 7b, unchanged; raise ValueError for any other name.

    Args:
        name: the name of the size.
    """
    if name not in SHAPES:
        raise ValueError(f"must be a known size of Llama ({', '.join(SHAPES)}), got {name!r}")
    return name


def check_gpus(text: str) -> str:
    """Return a list of GPU counts, such as 8,64, unchanged; raise ValueError if one is not 1, 2, 4 or a multiple of 8.

    Args:
        text: the counts, separated by commas.
    """
    counts = [int(count) if count.strip().isdecimal() else 0 for count in text.split(",")]
    if min(counts) < 1:
        raise ValueError(f"must be whole numbers of at least 1, such as 8,64, got {text!r}")
    if odd := [count for count in counts if count % 8 and count not in (1, 2, 4)]:
        raise ValueError(f"must be 1, 2, 4 or a multiple of 8 (the GPUs of a node), got {odd[0]}")
    return text


def check_fleet(text: str) -> str:
    """Return a description of GPUs, such as 16xH100-80GB, unchanged; raise ValueError if it has no such form.

    Args:
        text: number and type of the GPUs.
    """
    read_gpus(text)
    return text


def check_link(text: str) -> str:
    """Return a bandwidth, such as 50GB/s, unchanged; raise ValueError if it has no such form.

    Args:
        text: the bandwidth.
    """
    read_link(text)
    return text


@dataclass(frozen=True, config=STRICT)
class RecipeOptions(Options):
    """Options of `hmt-ds plan RECIPE`; each field's docstring is its help text."""

    gpus: Annotated[str, "NxTYPE", AfterValidator(check_fleet)] = "8xH100-80GB"
    """GPUs to plan for, such as 16xH100-80GB; with --compare the numbers of GPUs to compare, such as 8,64"""
    nodes: AtLeastOne | None = None
    """number of nodes that hold the GPUs (default: as few as possible, with 8 GPUs on each)"""
    link: Annotated[str, "SPEED", AfterValidator(check_link)] = "50GB/s"
    """network bandwidth into a node, shared by its GPUs, in GB/s (bytes) or Gb/s (bits)"""
    host_memory: Annotated[PositiveNumber | None, "GIB"] = None
    """host memory of a node in GiB, which offloading needs (default: 128 for each of its GPUs)"""
    fit: Annotated[FilePath | None, "FILE"] = None
    """new recipe to write: the given one, changed to the fastest layout that fits into the GPUs (default: only print
    the estimate)"""

    @property
    def fleet(self) -> Fleet:
        """The GPUs to estimate a run for; raises ValueError if they cannot be spread evenly over the nodes."""
        return fleet_of(*read_gpus(self.gpus), self.nodes, read_link(self.link), self.host_memory)

    def conflicts(self) -> list[str]:
        """Return an error line if the GPUs cannot be spread evenly over the nodes, and one if the file to write
        exists."""
        found = []
        try:
            _ = self.fleet
        except ValueError as error:
            found.append(f"--gpus: {error}")
        if self.fit is not None and self.fit.exists():
            found.append(f"--fit: {self.fit} exists: name a new file")
        return found


@dataclass(frozen=True, config=STRICT)
class ScheduleOptions(Options):
    """Options of `hmt-ds plan --schedule`; each field's docstring is its help text."""

    stages: AtLeastOne = 4
    """number of pipeline stages"""
    segments: AtLeastOne = 4
    """number of segments that one backward pass goes through"""
    micro_batches: AtLeastOne | None = None
    """number of micro-batches that the rows of a batch are split into (default: the number of stages)"""
    mode: Mode = "hmt"
    """memory mode, as in a recipe's memory.mode"""
    picture: Annotated[FilePath | None, "FILE", AfterValidator(check_picture)] = None
    """picture file to draw the schedule into: .png, .svg or .pdf (default: only the terminal)"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of pipeline stages, segments and micro-batches."""
        return self.stages, self.segments, self.micro_batches or self.stages

    def conflicts(self) -> list[str]:
        """Return an error line if the schedule has too many passes to be simulated within seconds; else an empty
        list."""
        stages, segments, batches = self.shape
        if (actions := stages * segments * batches) <= MAX_ACTIONS:
            return []
        product = f"{stages} stages x {segments} segments x {batches} micro-batches"
        return [f"{product} are {actions:,}: at most {MAX_ACTIONS:,} can be drawn; give fewer"]


@dataclass(frozen=True, config=STRICT)
class CompareOptions(Options):
    """Options of `hmt-ds plan --compare`; each field's docstring is its help text."""

    shape: Annotated[str, "|".join(SHAPES), AfterValidator(check_shape)] = "7b"
    """size of the Llama backbone, in parameters"""
    gpus: Annotated[str, "N,N,...", AfterValidator(check_gpus)] = "8,64,256,1024"
    """numbers of GPUs to compare, separated by commas; nodes have 8 GPUs of 80 GB each"""
    between_nodes: Annotated[PositiveNumber, "GB/S"] = 50
    """network bandwidth into a node in GB/s, shared by its GPUs; the default is one 400 Gb/s network card"""
    rate: Annotated[PositiveNumber, "TFLOP/S"] = 600
    """TFLOP/s that a GPU achieves in bf16 matrix products"""
    rows: AtLeastOne = 2
    """number of sequences (batch rows) per optimizer step and GPU"""
    segment_length: AtLeastOne = 1024
    """number of tokens per segment, without prompts and sensory tokens"""
    segments: AtLeastOne = 8
    """number of segments that one backward pass goes through"""

    @property
    def gpu_counts(self) -> tuple[int, ...]:
        """The numbers of GPUs to compare, from ``--gpus``."""
        return tuple(int(count) for count in self.gpus.split(","))

    def conflicts(self) -> list[str]:
        """Return an error line if the comparison would simulate too many passes to finish within seconds; else an empty
        list."""
        if (product := self.rows * self.segments) <= MAX_ROWS:
            return []
        asked = f"{self.rows} rows x {self.segments} segments are {product:,}"
        return [f"{asked}: at most {MAX_ROWS} can be estimated; give fewer"]


PlanOptions = RecipeOptions | ScheduleOptions | CompareOptions
KINDS: dict[str, type[PlanOptions]] = {
    "a RECIPE": RecipeOptions,
    "--schedule": ScheduleOptions,
    "--compare": CompareOptions,
}


def add_plan_options(command: argparse.ArgumentParser) -> None:
    """Add all arguments of `hmt-ds plan` to its parser: the recipe, and the options of ``--schedule`` and
    ``--compare``.

    Args:
        command: the parser.
    """
    command.add_argument(
        "source",
        nargs="?",
        metavar="RECIPE",
        help="a recipe (a YAML file), the folder of a run, or the name of a known model, such as Llama-3.1-8B; for "
        "another name the error lists the known ones",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--schedule",
        action="store_true",
        help="draw when each pipeline stage runs which forward and backward pass, beside a lower bound on the duration",
    )
    what.add_argument(
        "--compare",
        action="store_true",
        help="estimate the seconds of a step with pipelines, ZeRO-1 and ZeRO-3 on several numbers of GPUs",
    )
    command.add_argument(
        "--segments",
        metavar="N",
        help="number of segments that one backward pass goes through, at least 1 (default: 4, or 8 with --compare)",
    )
    add_options(command.add_argument_group("with a recipe"), RecipeOptions)
    add_options(command.add_argument_group("with --schedule"), ScheduleOptions, leave_out={"segments"})
    add_options(command.add_argument_group("with --compare"), CompareOptions, leave_out={"segments", "gpus"})


def read_plan_options(arguments: argparse.Namespace) -> PlanOptions:
    """Build the options of `hmt-ds plan` from the parsed arguments.

    Args:
        arguments: the parsed command line.

    Returns:
        The options for a recipe, for ``--schedule`` or for ``--compare``, whichever the arguments ask for.

    Raises:
        ConfigError: with a line for each option that is wrong, or does not belong to what the arguments ask for.
    """
    use = "--schedule" if arguments.schedule else "--compare" if arguments.compare else "a RECIPE"
    if (use == "a RECIPE") == (arguments.source is None):
        raise ConfigError(["plan needs one of: a RECIPE (or the name of a known model), --schedule, --compare"])
    owners: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        for option in fields_of(kind):
            owners.setdefault(option, []).append(name)
    given = [option for option, kinds in owners.items() if use not in kinds and getattr(arguments, option) is not None]
    problems = [f"{flag(option)}: only with {' or '.join(owners[option])}, not {use}: leave it out" for option in given]
    options, wrong = read_options(KINDS[use], arguments)
    if problems or wrong:
        raise ConfigError(problems + wrong)
    return options
