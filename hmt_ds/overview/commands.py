"""Run the subcommands ``status`` and ``report``. Imports no torch and no matplotlib before one of them runs."""

import argparse

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import read_options
from hmt_ds.overview.report_options import ReportOptions


def status(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds status RUN`: print the state, progress, loss, checkpoints and ranks of a run.

    Args:
        arguments: parsed command line; ``source`` is the path of the run's folder.

    Returns:
        Exit code: 0 if the run is running, finished or stopped by its user, 1 if it needs attention.

    Raises:
        ConfigError: if the folder is no run.
    """
    from hmt_ds.overview.run_folder import RunFolder
    from hmt_ds.overview.status import Status

    found = Status(RunFolder(arguments.source))
    print("\n".join(found.lines()))
    return 0 if found.ok else 1


def report(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds report RUN...`: write an HTML page that compares runs, and print its path.

    Args:
        arguments: parsed command line; ``runs`` are the paths of the runs' folders.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: with a line for each wrong option, each folder that is no run, or if the page cannot be written.
    """
    options, problems = read_options(ReportOptions, arguments)
    if problems:
        raise ConfigError(problems)
    from hmt_ds.overview.report import write_report

    print(f"report      {write_report(arguments.runs, options.output)}")
    return 0
