"""The command ``hmt-ds``. It checks what was asked, starts the ranks of this machine, and passes on how they ended."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmt_ds import __version__
from hmt_ds.convert_options import add_convert_options, chosen
from hmt_ds.launch.slurm import add_launch, launch
from hmt_ds.local import run_ranks
from hmt_ds.planning.options import BenchOptions, add_bench_options, take_options
from hmt_ds.planning.plan_options import add_plan

if TYPE_CHECKING:
    from hmt_ds.recipe import Recipe

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


def start_ranks(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Check the recipe, then start the ranks of this machine through the deepspeed launcher."""
    from hmt_ds.config import ConfigError
    from hmt_ds.reporting.progress import print_problems

    source = Path(arguments.source)
    recipe_file = source / "recipe.yaml" if source.is_dir() else source
    quiet_environment()
    if arguments.command == "bench" and arguments.reference and not arguments.ranks:
        arguments.ranks = 1
    try:
        words = check(arguments, recipe_file, overrides)
    except ConfigError as error:
        print_problems(error.problems)
        return 2
    ranks = arguments.ranks or ranks_of(source) or number_of_gpus() or 1
    named = str(source if arguments.command == "evaluate" else recipe_file)
    return run_ranks(f"hmt_ds.{arguments.command}", [named, *words], ranks)


def check(arguments: argparse.Namespace, recipe_file: Path, overrides: list[str]) -> list[str]:
    """See whether the command can be done; returns what the ranks are told besides the recipe's file.

    Raises:
        ConfigError: with all problems.
    """
    from hmt_ds.config import ConfigError, load_recipe

    options, problems = take_options(arguments) if arguments.command == "bench" else (None, [])
    try:
        recipe = load_recipe(recipe_file, overrides)
        check_recipe(arguments, options, recipe, recipe_file)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    if problems:
        raise ConfigError(problems)
    return [*options.words(), *overrides] if options else overrides


def check_recipe(
    arguments: argparse.Namespace, options: BenchOptions | None, recipe: Recipe, recipe_file: Path
) -> None:
    """See whether a recipe can be run here.

    Args:
        options: of ``bench``, else None.

    Raises:
        ConfigError: with all problems.
    """
    from hmt_ds.parallel.distributed import quiet
    from hmt_ds.prepare import prepare

    quiet()
    with_data = options is None or options.tokens == "data"
    prepare(recipe, recipe_file, new_run=arguments.command == "train", with_data=with_data)
    if options is not None:
        from hmt_ds.bench import check_reference

        check_reference(recipe, options, arguments.ranks)


def quiet_environment() -> None:
    """Settings that the ranks inherit."""
    # DeepSpeed compiles with ninja, which is beside this Python where the environment was not activated
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if not number_of_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # glibc returns large blocks to the system at once and fetches them anew: tensors are 3 to 7 times slower
        os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")
        os.environ.setdefault("MALLOC_TOP_PAD_", "1073741824")


def number_of_gpus() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def ranks_of(run: Path) -> int | None:
    """How many ranks wrote a run's newest checkpoint."""
    import json

    try:
        newest = (run / "checkpoints" / "latest").read_text().strip()
        return int(json.loads((run / "checkpoints" / newest / "progress.json").read_text())["world_size"])
    except (OSError, ValueError, KeyError):
        return None


def list_keys(_: argparse.Namespace) -> int:
    """Print every key of the recipe."""
    from rich.console import Console

    from hmt_ds.config import keys
    from hmt_ds.recipe import Recipe
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
    from hmt_ds.convert import MISTAKES, Options, convert
    from hmt_ds.parallel.distributed import quiet
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
    """Print a ring's schedule, or estimates."""
    from hmt_ds.plan import plan

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
