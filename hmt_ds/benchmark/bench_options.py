"""The options of `hmt-ds bench`, parsed by the command, which checks them, and again by the ranks that it starts.

Imports no torch: the command line builds its help from this module.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from hmt_ds.config.value_checks import whole_number, why_no_folder

TOKENS = ("random", "data")


@dataclass(frozen=True)
class BenchOptions:
    """The options of `hmt-ds bench`.

    Attributes:
        steps: timed optimizer steps.
        warmup: untimed steps before them.
        tokens: ``random``, or ``data`` for the recipe's data.
        fresh: whether each window of random tokens begins new documents.
        json: file to write all numbers to.
        trace: folder for a trace of one step.
        reference: a clone of HMT-pytorch to compare with.
    """

    steps: int
    warmup: int
    tokens: str
    fresh: bool
    json: Path | None
    trace: Path | None
    reference: Path | None

    def words(self) -> list[str]:
        """Return the same options as command-line words."""
        named = {"--json": self.json, "--trace": self.trace, "--reference": self.reference}
        words = ["--steps", str(self.steps), "--warmup", str(self.warmup), "--tokens", self.tokens]
        words += ["--fresh"] if self.fresh else []
        return words + [word for name, path in named.items() if path for word in (name, str(path))]


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Add the options. Values stay text until :func:`take_options` checks them all and reports every problem."""
    add = parser.add_argument
    add("--steps", default="3", metavar="N", help="timed optimizer steps (default: 3)")
    # on GPUs the second step measures memory, the third compiles for the resulting plan, the fourth captures graphs
    add(
        "--warmup",
        default="4",
        metavar="N",
        help="untimed steps before them (default: 4; with fewer a GPU is not at full speed)",
    )
    add(
        "--tokens",
        default="random",
        metavar="random|data",
        help="train on random tokens (default) or on the recipe's data",
    )
    add("--fresh", action="store_true", help="begin new documents in each window, instead of carrying memories on")
    add("--json", metavar="FILE", help="write all numbers to a JSON file, with the seconds of every step")
    add("--trace", metavar="FOLDER", help="write a trace of one more step, to open in Perfetto or chrome://tracing")
    add("--reference", metavar="DIR", help="compare with HMT-pytorch, run from this clone on the same work (one GPU)")


def take_options(arguments: argparse.Namespace) -> tuple[BenchOptions, list[str]]:
    """Return the options, and one line per problem."""
    problems: list[str] = []
    given = {name: getattr(arguments, name) for name in ("json", "trace", "reference")}
    options = BenchOptions(
        steps=whole_number("--steps", arguments.steps, 1, problems),
        warmup=whole_number("--warmup", arguments.warmup, 0, problems),
        tokens=arguments.tokens,
        fresh=arguments.fresh,
        **{name: Path(text) if text else None for name, text in given.items()},
    )
    if options.tokens not in TOKENS:
        problems.append(f"--tokens: must be random or data, got {options.tokens!r}")
    if options.fresh and options.tokens == "data":
        problems.append("--fresh: only with --tokens random")
    return options, problems + path_problems(options.json, options.trace)


def path_problems(json: Path | None, trace: Path | None) -> list[str]:
    """Return what prevents writing the numbers and the trace, one line per problem."""
    problems = []
    if json and json.is_dir():
        problems.append(f"--json: {json} is a folder, give a file")
    elif json and json.is_file() and json.suffix != ".json":
        problems.append(f"--json: {json} exists and is not a .json file, and would be overwritten: give another file")
    elif json and not json.exists() and (reason := why_no_folder(json)):
        problems.append(f"--json: {reason}")
    if trace and (reason := why_no_folder(trace)):
        problems.append(f"--trace: {reason}")
    return problems


def parse_words(words: list[str]) -> tuple[BenchOptions, list[str], list[str]]:
    """Parse a rank's command line after the recipe; return the options, the recipe's overrides and the problems."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_bench_options(parser)
    arguments, overrides = parser.parse_known_args(words)
    options, problems = take_options(arguments)
    return options, overrides, problems
