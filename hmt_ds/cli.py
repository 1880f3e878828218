"""The command ``hmt-ds``. It checks what was asked, starts the ranks of this machine, and passes on how they ended."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hmt_ds import __version__
from hmt_ds.benchmark.bench_options import add_bench_options
from hmt_ds.conversion.convert_options import add_convert_options, chosen
from hmt_ds.launch.slurm import add_launch, launch
from hmt_ds.launch.start import quiet_environment, start_ranks
from hmt_ds.planning.plan_options import add_plan

RANKS_HELP = "processes on this machine (default: as many as wrote the run's checkpoint, or its GPUs, or 1)"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="hmt-ds", description="Train Hierarchical Memory Transformers on DeepSpeed.")
    parser.add_argument("--version", action="version", version=f"hmt-ds {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text, operand in (
        ("train", "train a model", "RECIPE"),
        ("evaluate", "held-out perplexity by segments read, memory on and off", "RUN|RECIPE"),
        ("bench", "speed and memory of some steps", "RECIPE"),
    ):
        command = commands.add_parser(
            name,
            help=help_text,
            description=f"{help_text}. Keys of the recipe can follow: --memory.segment_length 256",
            epilog="`hmt-ds keys` lists all keys. On several machines, see launch/.",
        )
        command.add_argument("source", metavar=operand)
        command.add_argument("--ranks", type=positive, metavar="N", help=RANKS_HELP)
        if name == "bench":
            add_bench_options(command)
    commands.add_parser("keys", help="list the keys of a recipe, with types and defaults")
    tokenizer = commands.add_parser("tokenizer", help="train a sentencepiece BPE tokenizer on text files")
    tokenizer.add_argument("files", nargs="+", type=Path, metavar="FILE")
    tokenizer.add_argument("--vocab-size", type=int, default=4096)
    tokenizer.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    add_convert(commands)
    add_plan(commands)
    add_launch(commands)
    arguments, overrides = parser.parse_known_args()
    if arguments.command == "convert":
        sys.exit(convert_checkpoint(arguments, overrides))
    if arguments.command == "launch":
        sys.exit(launch(arguments, overrides))
    if arguments.command in ("train", "evaluate", "bench"):
        sys.exit(start_ranks(arguments, overrides))
    if overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    other = {"keys": list_keys, "tokenizer": make_tokenizer, "plan": make_plan}[arguments.command]
    sys.exit(other(arguments))


def positive(text: str) -> int:
    """A number of at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def list_keys(_: argparse.Namespace) -> int:
    """Print every key of the recipe."""
    from rich.console import Console

    from hmt_ds.config.recipe import Recipe
    from hmt_ds.config.sections import keys
    from hmt_ds.reporting.tables import keys_table

    Console().print(keys_table(keys(Recipe)))
    return 0


def add_convert(commands: Any) -> None:
    """The command ``convert``."""
    command = commands.add_parser(
        "convert",
        help="write a checkpoint as a Hugging Face folder",
        description="write a run, a checkpoint of it, a converted folder, HMT-pytorch's weights or a DeepSpeed folder "
        "as a Hugging Face folder. The last two need --backbone, and sizes: --memory.segment_length 990",
    )
    command.add_argument("source", type=Path, metavar="SOURCE")
    command.add_argument("target", type=Path, metavar="TARGET", help="a new folder")
    add_convert_options(command)


def convert_checkpoint(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Convert and say what was done."""
    quiet_environment()
    from hmt_ds.conversion.convert import MISTAKES, Options, convert
    from hmt_ds.distributed.process_group import quiet
    from hmt_ds.reporting.progress import print_problems

    quiet()
    try:
        lines = convert(arguments.source, arguments.target, Options(**chosen(arguments), overrides=tuple(overrides)))
    except MISTAKES as error:
        print_problems(str(error).splitlines())
        return 2
    print("\n".join(lines))
    return 0


def make_plan(arguments: argparse.Namespace) -> int:
    """Draw a pipeline schedule, or estimate pipelines and ZeRO on clusters."""
    from hmt_ds.planning.plan import plan

    return plan(arguments)


def make_tokenizer(arguments: argparse.Namespace) -> int:
    """Train a tokenizer and say where it is."""
    from hmt_ds.data import DataError, train_sentencepiece
    from hmt_ds.reporting.progress import print_problems

    try:
        train_sentencepiece(arguments.files, arguments.output, arguments.vocab_size)
    except DataError as error:
        print_problems([str(error)])
        return 2
    print(f"tokenizer   {arguments.output}")
    return 0


if __name__ == "__main__":
    main()
