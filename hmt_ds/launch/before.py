"""The commands before a run for the command line: ``init``, ``doctor``, ``check``. Imports no torch before they run."""

import argparse

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import read_options
from hmt_ds.config.sections import fields_of
from hmt_ds.launch.init_options import InitOptions
from hmt_ds.launch.start import dry_run, set_rank_environment


def init(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds init`: write a recipe; return the exit code."""
    options, problems = read_options(InitOptions, arguments)
    if problems:
        raise ConfigError(problems)
    set_rank_environment()
    from hmt_ds.launch.new_recipe import write_recipe

    given = {name for name in fields_of(InitOptions) if getattr(arguments, name) is not None}
    print("\n".join(write_recipe(arguments.file, options, given)))
    return 0


def doctor(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds doctor`: check this machine; return the exit code."""
    if not arguments.folder.is_dir():
        raise ConfigError([f"{arguments.folder}: no such folder: name the folder that runs will be written to"])
    set_rank_environment()
    from hmt_ds.launch.doctor import print_report

    return print_report(arguments.folder)


def check(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds check`: check a recipe, and describe what it would train; return the exit code."""
    return dry_run(arguments.source, None, overrides, [], writes_output=False)
