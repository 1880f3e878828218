"""``hmt-ds report RUN...``: write one self-contained HTML page that compares runs."""

import time
from collections.abc import Sequence
from pathlib import Path

from hmt_ds.config.config_error import ConfigError, collected
from hmt_ds.overview.evaluations import Shown, read_evaluations
from hmt_ds.overview.page import render, write_page
from hmt_ds.overview.run_folder import RunFolder
from hmt_ds.overview.sections import sections_of

NAME = "report.html"


def write_report(folders: Sequence[Path], output: Path | None) -> Path:
    """Write a report of runs as one HTML page; return its path.

    Args:
        folders: the runs' folders.
        output: the page to write; None for report.html in the first run's folder.

    Raises:
        ConfigError: with a line for each folder that is no run, or if the page cannot be written.
    """
    problems: list[str] = []
    runs: list[RunFolder] = []
    for folder in folders:
        with collected(problems):
            runs.append(RunFolder(folder))
    if problems:
        raise ConfigError(problems)
    named = zip(names_of(runs), runs, strict=True)
    shown = [Shown(number, name, run, read_evaluations(run.folder)) for number, (name, run) in enumerate(named)]
    title = shown[0].name if len(shown) == 1 else f"{len(shown)} runs: {', '.join(one.name for one in shown)}"
    page = render(title, f"hmt_ds, written {time.strftime('%Y-%m-%d %H:%M:%S')}", sections_of(shown))
    file = output or runs[0].folder / NAME
    write_page(file, page, "--output")
    return file


def names_of(runs: Sequence[RunFolder]) -> list[str]:
    """Return a name for each run of a report: its folder's name, or its path if two folders have the same name.

    Args:
        runs: the runs' folders.
    """
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
