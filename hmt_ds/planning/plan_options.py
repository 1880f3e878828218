"""The options of `hmt-ds plan`. No torch in here: the command line builds its help from it."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt_ds.config.value_checks import whole_number
from hmt_ds.parallel.pipeline.schedule import MODES
from hmt_ds.planning.shapes import SHAPES

PICTURES = (".png", ".svg", ".pdf")
MOST = 100_000  # stages x segments x micro-batches of a schedule, which take some seconds
MOST_ROWS = 512  # rows x segments of a comparison, likewise
SCHEDULE = {"stages": "4", "segments": "4", "micro_batches": None, "mode": "hmt", "picture": None}
COMPARE = {"shape": "7b", "gpus": "8,64,256,1024", "between_nodes": "50", "rate": "600", "rows": "2"}
COMPARE |= {"segment_length": "1024", "segments": "8"}


@dataclass(frozen=True)
class ScheduleOptions:
    """What `hmt-ds plan --schedule` is told."""

    stages: int
    segments: int
    micro_batches: int
    mode: str
    picture: Path | None


@dataclass(frozen=True)
class CompareOptions:
    """What `hmt-ds plan --compare` is told.

    Attributes:
        between_nodes: bytes per second into a node, and out of it.
        rate: FLOP/s.
        rows: of a step, for each GPU.
        segments: of a window.
    """

    shape: str
    gpus: tuple[int, ...]
    between_nodes: float
    rate: float
    rows: int
    segment_length: int
    segments: int


def add_plan(commands: Any) -> None:
    """Declare the command. Values stay text: what is wrong with them is said like what is wrong with a recipe."""
    command = commands.add_parser(
        "plan",
        help="a ring pipeline's schedule, or what it is worth on a cluster",
        description="draw the schedule of a ring pipeline (--schedule), or estimate rings and ZeRO on clusters "
        "(--compare). Nothing is run, and no recipe is needed.",
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--schedule", action="store_true", help="what each stage does when, and what no schedule beats")
    what.add_argument("--compare", action="store_true", help="a step's time on a ring of stages and with ZeRO")
    command.add_argument("--segments", metavar="N", help="segments of a window (default: 4; with --compare 8)")
    add = command.add_argument_group("with --schedule").add_argument
    add("--stages", metavar="N", help="stages of the pipeline (default: 4)")
    add("--micro-batches", metavar="N", help="that are read side by side (default: as many as stages)")
    add("--mode", metavar="|".join(MODES), help="of the memory (default: hmt)")
    add("--picture", metavar="FILE", help="draw it, all of it, into a .png, .svg or .pdf")
    add = command.add_argument_group("with --compare").add_argument
    add("--shape", metavar="|".join(SHAPES), help="of a Llama (default: 7b)")
    add("--gpus", metavar="N,N,...", help="8 to a node, of 80 GB each (default: 8,64,256,1024)")
    add("--between-nodes", metavar="GB/S", help="into a node, which its GPUs share (default: 50; one network card)")
    add("--rate", metavar="TFLOP/S", help="that a GPU achieves in matrix products (default: 600)")
    add("--rows", metavar="N", help="that a step reads for each GPU (default: 2)")
    add("--segment-length", metavar="N", help="fresh tokens of a segment (default: 1024)")


def take_plan_options(arguments: argparse.Namespace) -> tuple[ScheduleOptions | CompareOptions, list[str]]:
    """The options with their defaults, and a line for each that makes no sense."""
    ours, others = (SCHEDULE, COMPARE) if arguments.schedule else (COMPARE, SCHEDULE)
    said = {name: value for name, value in vars(arguments).items() if value is not None}
    place = "--schedule" if others is SCHEDULE else "--compare"
    foreign = [name for name in others if name in said and name not in ours]
    problems = [f"--{name.replace('_', '-')}: is for {place}" for name in foreign]
    given = {name: said.get(name, default) for name, default in ours.items()}
    take = take_schedule if arguments.schedule else take_compare
    return take(given, problems), problems


def take_schedule(given: dict[str, Any], problems: list[str]) -> ScheduleOptions:
    """The options of --schedule; problems are appended."""
    stages = whole_number("--stages", given["stages"], 1, problems)
    segments = whole_number("--segments", given["segments"], 1, problems)
    batches = stages
    if given["micro_batches"] is not None:
        batches = whole_number("--micro-batches", given["micro_batches"], 1, problems)
    if stages * segments * batches > MOST:
        product = f"{stages} stages x {segments} segments x {batches} micro-batches"
        problems.append(f"{product} are {stages * segments * batches:,}: at most {MOST:,} are drawn")
    if given["mode"] not in MODES:
        problems.append(f"--mode: must be one of {', '.join(MODES)}, got {given['mode']!r}")
    picture = Path(given["picture"]) if given["picture"] else None
    if picture and picture.suffix not in PICTURES:
        problems.append(f"--picture: must end in {', '.join(PICTURES)}, got {given['picture']!r}")
    elif picture and (picture.is_dir() or not picture.absolute().parent.is_dir()):
        problems.append(f"--picture: {picture} cannot be written: give a file in a folder that is there")
    return ScheduleOptions(stages, segments, batches, given["mode"], picture)


def take_compare(given: dict[str, Any], problems: list[str]) -> CompareOptions:
    """The options of --compare; problems are appended."""
    if given["shape"] not in SHAPES:
        problems.append(f"--shape: must be one of {', '.join(SHAPES)}, got {given['shape']!r}")
    gpus = tuple(whole_number("--gpus", text.strip(), 1, problems) for text in given["gpus"].split(","))
    odd = [n for n in gpus if n % 8 and n not in (1, 2, 4)]
    problems += [f"--gpus: {n} neither fill nodes of 8 nor are 1, 2 or 4 of one node" for n in odd]
    rows = whole_number("--rows", given["rows"], 1, problems)
    segments = whole_number("--segments", given["segments"], 1, problems)
    if rows * segments > MOST_ROWS:
        problems.append(f"{rows} rows x {segments} segments are {rows * segments:,}: at most {MOST_ROWS} are estimated")
    return CompareOptions(
        given["shape"],
        gpus,
        positive_number("--between-nodes", given["between_nodes"], problems) * 1e9,
        positive_number("--rate", given["rate"], problems) * 1e12,
        rows,
        whole_number("--segment-length", given["segment_length"], 1, problems),
        segments,
    )


def positive_number(option: str, text: str, problems: list[str]) -> float:
    """The number, or 1 with the problem noted."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if 0 < number < float("inf"):
        return number
    problems.append(f"{option}: must be a number above 0, got {text!r}")
    return 1.0
