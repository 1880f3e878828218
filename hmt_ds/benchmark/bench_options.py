"""The options of `hmt-ds bench`: read twice, by the command, which checks them, and by the ranks that it starts.

No torch in here: the command line builds its help from it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from hmt_ds.config.value_checks import whole_number, why_no_folder

TOKENS = ("random", "data")


@dataclass(frozen=True)
class BenchOptions:
    """What `hmt-ds bench` is told besides the recipe.

    Attributes:
        steps: optimizer steps that are timed.
        warmup: steps before them.
        tokens: ``random``, or ``data`` for the recipe's own.
        fresh: whether each window of random tokens begins its documents anew.
        json: where all numbers are written.
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
        """The same options as words of a command line."""
        named = {"--json": self.json, "--trace": self.trace, "--reference": self.reference}
        words = ["--steps", str(self.steps), "--warmup", str(self.warmup), "--tokens", self.tokens]
        words += ["--fresh"] if self.fresh else []
        return words + [word for name, path in named.items() if path for word in (name, str(path))]


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options. Values stay text: what is wrong with them is said like what is wrong with a recipe."""
    add = parser.add_argument
    add("--steps", default="3", metavar="N", help="optimizer steps that are timed (default: 3)")
    # on GPUs the second step is measured, the third compiles what is planned by it, and the fourth captures graphs
    add("--warmup", default="4", metavar="N", help="steps before them (default: 4; with fewer a GPU is not at speed)")
    add("--tokens", default="random", metavar="random|data", help="random tokens (default), or the recipe's data")
    add("--fresh", action="store_true", help="begin new documents in each window; else memories are carried on")
    add("--json", metavar="FILE", help="write all numbers, and every step's seconds")
    add("--trace", metavar="FOLDER", help="write a trace of one more step, for Perfetto or chrome://tracing")
    add("--reference", metavar="DIR", help="run HMT-pytorch from this clone on the same work, and compare (one GPU)")


def take_options(arguments: argparse.Namespace) -> tuple[BenchOptions, list[str]]:
    """The options, and a line for each that makes no sense."""
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
        problems.append("--fresh: is for random tokens, documents of the data begin where they begin")
    return options, problems + place_problems(options.json, options.trace)


def place_problems(json: Path | None, trace: Path | None) -> list[str]:
    """What stands where numbers and a trace are to be written."""
    problems = []
    if json and json.is_dir():
        problems.append(f"--json: {json} is a folder, give a file")
    elif json and json.is_file() and json.suffix != ".json":
        problems.append(f"--json: {json} is there, and it is no .json file: name another, it would be overwritten")
    elif json and not json.exists() and (reason := why_no_folder(json)):
        problems.append(f"--json: {reason}")
    if trace and (reason := why_no_folder(trace)):
        problems.append(f"--trace: {reason}")
    return problems


def parse_words(words: list[str]) -> tuple[BenchOptions, list[str], list[str]]:
    """What stands behind the recipe on a rank's command line: the options, the overrides, the problems."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_bench_options(parser)
    arguments, overrides = parser.parse_known_args(words)
    options, problems = take_options(arguments)
    return options, overrides, problems
