"""Start ``train``, ``evaluate`` or ``bench`` on this machine: check the recipe, then run the ranks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hmt_ds.benchmark.bench_options import BenchOptions, take_options
from hmt_ds.launch.local import run_ranks

if TYPE_CHECKING:
    from hmt_ds.config.recipe import Recipe


def start_ranks(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Check the recipe, then start the ranks of this machine through the deepspeed launcher."""
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.reporting.progress import print_problems

    source = Path(arguments.source)
    recipe_file = source / "recipe.yaml" if source.is_dir() else source
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
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.config.load import load_recipe

    options, problems = take_options(arguments) if arguments.command == "bench" else (None, [])
    try:
        recipe = load_recipe(recipe_file, overrides)
        quiet_environment()  # imports torch, for which nobody with a misspelt key should have to wait
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
    from hmt_ds.distributed.process_group import quiet
    from hmt_ds.preflight.prepare import prepare

    quiet()
    with_data = options is None or options.tokens == "data"
    prepare(recipe, recipe_file, new_run=arguments.command == "train", with_data=with_data)
    if options is not None:
        from hmt_ds.benchmark.run import check_reference

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
