"""The options of `hmt-ds compare`. Imports no torch: the command line builds its help from this module."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import FilePath, Options
from hmt_ds.config.sections import STRICT
from hmt_ds.config.value_checks import check_picture


@dataclass(frozen=True, config=STRICT)
class CompareOptions(Options):
    """Options of `hmt-ds compare`; each field's docstring is its help text."""

    gap: bool = False
    """also print, for each run, which fraction of the gap in held-out loss between the first and the last run it
    closes; needs at least three runs"""
    picture: Annotated[FilePath, "FILE", AfterValidator(check_picture)] = Path("comparison.png")
    """picture file (.png, .svg or .pdf) to draw each run's difference from the first run into"""
