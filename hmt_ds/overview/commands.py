"""The commands ``status`` and ``report`` for the command line. Imports no torch and no matplotlib before they run."""

import argparse

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import read_options
from hmt_ds.overview.report_options import ReportOptions


def status(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds status`: say how a run is."""
    from hmt_ds.overview.run_folder import RunFolder
    from hmt_ds.overview.status import Status

    found = Status(RunFolder(arguments.source))
    print("\n".join(found.lines()))
    return 0 if found.ok else 1


def report(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds report`: write a page about runs."""
    options, problems = read_options(ReportOptions, arguments)
    if problems:
        raise ConfigError(problems)
    from hmt_ds.overview.report import write_report

    print(f"report      {write_report(arguments.runs, options.output)}")
    return 0
