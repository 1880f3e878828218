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
    """The options of `hmt-ds compare`; the text below each field is its help."""

    gap: bool = False
    """also print the fraction of the gap in loss between the first and the last run that each run closes"""
    picture: Annotated[FilePath, "FILE", AfterValidator(check_picture)] = Path("comparison.png")
    """file to draw the differences from the first run into: .png, .svg or .pdf"""
