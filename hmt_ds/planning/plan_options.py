"""The options of `hmt-ds plan`. Imports no torch: the command line builds its help from this module."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hmt_ds.config.value_checks import whole_number
from hmt_ds.memory.settings import MODES
from hmt_ds.planning.shapes import SHAPES

PICTURES = (".png", ".svg", ".pdf")
# Limits that keep the command to a few seconds.
MAX_ACTIONS = 100_000  # stages x segments x micro-batches of a schedule
MAX_ROWS = 512  # rows x segments of a comparison
SCHEDULE = {"stages": "4", "segments": "4", "micro_batches": None, "mode": "hmt", "picture": None}
COMPARE = {"shape": "7b", "gpus": "8,64,256,1024", "between_nodes": "50", "rate": "600", "rows": "2"}
COMPARE |= {"segment_length": "1024", "segments": "8"}


@dataclass(frozen=True)
class ScheduleOptions:
    """The options of `hmt-ds plan --schedule`."""

    stages: int
    segments: int
    micro_batches: int
    mode: str
    picture: Path | None


@dataclass(frozen=True)
class CompareOptions:
    """The options of `hmt-ds plan --compare`.

    Attributes:
        between_nodes: bytes per second into a node, and out of it.
        rate: FLOP/s of a GPU's matrix products.
        rows: per step and GPU.
        segments: per window.
    """

    shape: str
    gpus: tuple[int, ...]
    between_nodes: float
    rate: float
    rows: int
    segment_length: int
    segments: int


def add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command. Values stay text until :func:`take_plan_options` checks them all and reports every problem."""
    command = commands.add_parser(
        "plan",
        help="draw a pipeline schedule, or estimate pipelines and ZeRO on a cluster",
        description="Draw the schedule of a pipeline (--schedule), or estimate a training step with pipelines and ZeRO "
        "on clusters (--compare). Runs nothing and needs no recipe.",
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--schedule", action="store_true", help="draw each stage's passes and compare with a lower bound")
    what.add_argument("--compare", action="store_true", help="estimate the time of a step with pipelines and with ZeRO")
    command.add_argument("--segments", metavar="N", help="segments per window (default: 4; with --compare 8)")
    add = command.add_argument_group("with --schedule").add_argument
    add("--stages", metavar="N", help="pipeline stages (default: 4)")
    add("--micro-batches", metavar="N", help="micro-batches per window (default: the number of stages)")
    add("--mode", metavar="|".join(MODES), help="memory mode, as memory.mode of a recipe (default: hmt)")
    add("--picture", metavar="FILE", help="write the whole schedule to a .png, .svg or .pdf file")
    add = command.add_argument_group("with --compare").add_argument
    add("--shape", metavar="|".join(SHAPES), help="size of the Llama model (default: 7b)")
    add("--gpus", metavar="N,N,...", help="numbers of GPUs, 8 per node, 80 GB each (default: 8,64,256,1024)")
    add(
        "--between-nodes",
        metavar="GB/S",
        help="bandwidth into a node, shared by its GPUs (default: 50, one network card)",
    )
    add("--rate", metavar="TFLOP/S", help="rate that a GPU achieves in matrix products (default: 600)")
    add("--rows", metavar="N", help="rows per step and GPU (default: 2)")
    add("--segment-length", metavar="N", help="fresh tokens per segment (default: 1024)")


def take_plan_options(arguments: argparse.Namespace) -> tuple[ScheduleOptions | CompareOptions, list[str]]:
    """Return the options with defaults filled in, and one line per problem."""
    defaults, others = (SCHEDULE, COMPARE) if arguments.schedule else (COMPARE, SCHEDULE)
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    other = "--schedule" if others is SCHEDULE else "--compare"
    misplaced = [name for name in others if name in given and name not in defaults]
    problems = [f"--{name.replace('_', '-')}: only with {other}" for name in misplaced]
    every = {name: given.get(name, default) for name, default in defaults.items()}
    values = {name: text for name, text in every.items() if text is not None}
    take = take_schedule if arguments.schedule else take_compare
    return take(values, problems), problems


def take_schedule(values: Mapping[str, str], problems: list[str]) -> ScheduleOptions:
    """Return the options of --schedule; appends to ``problems``."""
    stages = whole_number("--stages", values["stages"], 1, problems)
    segments = whole_number("--segments", values["segments"], 1, problems)
    batches = stages
    if (text := values.get("micro_batches")) is not None:
        batches = whole_number("--micro-batches", text, 1, problems)
    if stages * segments * batches > MAX_ACTIONS:
        product = f"{stages} stages x {segments} segments x {batches} micro-batches"
        problems.append(f"{product} are {stages * segments * batches:,}: at most {MAX_ACTIONS:,} can be drawn")
    if values["mode"] not in MODES:
        problems.append(f"--mode: must be one of {', '.join(MODES)}, got {values['mode']!r}")
    picture = Path(text) if (text := values.get("picture")) else None
    if picture and picture.suffix not in PICTURES:
        problems.append(f"--picture: must end in {', '.join(PICTURES)}, got {values['picture']!r}")
    elif picture and (picture.is_dir() or not picture.absolute().parent.is_dir()):
        problems.append(f"--picture: {picture} cannot be written: give a file in an existing folder")
    return ScheduleOptions(stages, segments, batches, values["mode"], picture)


def take_compare(values: Mapping[str, str], problems: list[str]) -> CompareOptions:
    """Return the options of --compare; appends to ``problems``."""
    if values["shape"] not in SHAPES:
        problems.append(f"--shape: must be one of {', '.join(SHAPES)}, got {values['shape']!r}")
    gpus = tuple(whole_number("--gpus", text.strip(), 1, problems) for text in values["gpus"].split(","))
    odd = [n for n in gpus if n % 8 and n not in (1, 2, 4)]
    problems += [f"--gpus: must be 1, 2, 4 or a multiple of 8 (the GPUs of a node), got {n}" for n in odd]
    rows = whole_number("--rows", values["rows"], 1, problems)
    segments = whole_number("--segments", values["segments"], 1, problems)
    if rows * segments > MAX_ROWS:
        problems.append(
            f"{rows} rows x {segments} segments are {rows * segments:,}: at most {MAX_ROWS} can be estimated"
        )
    return CompareOptions(
        values["shape"],
        gpus,
        positive_number("--between-nodes", values["between_nodes"], problems) * 1e9,
        positive_number("--rate", values["rate"], problems) * 1e12,
        rows,
        whole_number("--segment-length", values["segment_length"], 1, problems),
        segments,
    )


def positive_number(option: str, text: str, problems: list[str]) -> float:
    """Return the number; for anything else 1, with a line appended to ``problems``."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if 0 < number < float("inf"):
        return number
    problems.append(f"{option}: must be a number above 0, got {text!r}")
    return 1.0
