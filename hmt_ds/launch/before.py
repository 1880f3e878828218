"""Run the subcommands used before a run: ``init``, ``doctor``, ``check``, ``keys``, ``preview``.

Imports no torch before one of them runs.
"""

import argparse
import sys

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import read_options
from hmt_ds.config.sections import fields_of
from hmt_ds.distributed.quick_imports import quick_imports
from hmt_ds.launch.init_options import InitOptions
from hmt_ds.launch.start import dry_run, set_rank_environment
from hmt_ds.preview.options import PreviewOptions


def init(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds init`: write a recipe from options and answers in a terminal, and return exit code 0.

    Args:
        arguments: the command line as argparse parsed it; ``file`` is the recipe to write.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(InitOptions, arguments)
    if problems:
        raise ConfigError(problems)
    set_rank_environment()
    from hmt_ds.launch.new_recipe import write_recipe

    given = {name for name in fields_of(InitOptions) if getattr(arguments, name) is not None}
    print("\n".join(write_recipe(arguments.file, options, given)))
    return 0


def doctor(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds doctor`: print a line for each part of this machine that training needs.

    Args:
        arguments: the command line as argparse parsed it; ``folder`` is where runs will be written.

    Returns:
        Exit code: 0, or 2 if training cannot work.

    Raises:
        ConfigError: there is no such folder.
    """
    if not arguments.folder.is_dir():
        raise ConfigError([f"{arguments.folder}: no such folder: name the folder that runs will be written to"])
    set_rank_environment()
    from hmt_ds.launch.doctor import print_report

    return print_report(arguments.folder)


def check(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds check`: check a recipe, print what it would train, start nothing, and return exit code 0.

    Args:
        arguments: the command line as argparse parsed it; ``source`` is the recipe.
        overrides: keys of the recipe to change, such as ``["--training.steps", "10"]``.

    Raises:
        ConfigError: with a line for each problem of the recipe.
    """
    return dry_run(arguments.source, None, overrides, [], writes_output=False)


def preview(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds preview`: show what a run of a recipe will read; return exit code 0.

    Args:
        arguments: the command line as argparse parsed it; ``source`` is the recipe.
        overrides: keys of the recipe to change, such as ``["--data.seed", "1"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(PreviewOptions, arguments)
    if problems:
        raise ConfigError(problems)
    set_rank_environment()
    with quick_imports():
        from hmt_ds.launch.prepare_data import silence
        from hmt_ds.preview.preview import preview as show

    silence()
    show(arguments.source, options, overrides)
    if options.html is not None:
        print(f"page        {options.html}")
    return 0


def list_keys(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds keys`: print keys of the recipe with type, default and help text; return exit code 0.

    Args:
        arguments: the command line as argparse parsed it; ``words`` select keys.

    Raises:
        ConfigError: no key contains the words, or words are combined with ``--markdown`` or ``--schema``.
    """
    from rich.console import Console

    from hmt_ds.config.find_keys import keys_with
    from hmt_ds.config.json_schema import recipe_schema
    from hmt_ds.config.recipe import Recipe
    from hmt_ds.config.sections import keys
    from hmt_ds.reporting.tables import keys_markdown, keys_table

    if arguments.markdown or arguments.schema:
        if arguments.words:
            raise ConfigError(["WORD: not with --markdown or --schema, which print all keys: leave one of them out"])
        print(keys_markdown(keys(Recipe)) if arguments.markdown else recipe_schema(), end="")
        return 0
    width = None if sys.stdout.isatty() else 160  # a file or a pipe does not say how wide it is
    Console(width=width).print(keys_table(keys_with(arguments.words, Recipe)))
    print("next        hmt-ds init FILE, or hmt-ds check RECIPE --section.key value")
    return 0
