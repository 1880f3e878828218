"""The options of `hmt-ds report`. Imports no torch: the command line builds its help from this module."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import FilePath, Options
from hmt_ds.config.sections import STRICT


def check_page(path: str) -> str:
    """Return a path unchanged; raise ValueError if it does not end in .html."""
    if not str(path).endswith(".html"):
        raise ValueError(f"must end in .html, got {str(path)!r}")
    return path


@dataclass(frozen=True, config=STRICT)
class ReportOptions(Options):
    """Options of `hmt-ds report`; each field's docstring is its help text."""

    output: Annotated[FilePath | None, "FILE", AfterValidator(lambda path: path and check_page(path))] = None
    """HTML page to write (default: report.html in the first run's folder)"""
