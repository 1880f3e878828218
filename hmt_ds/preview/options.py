"""The options of `hmt-ds preview`. Imports no torch: the command line builds its help from this module."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options
from hmt_ds.config.sections import STRICT
from hmt_ds.overview.report_options import check_page


@dataclass(frozen=True, config=STRICT)
class PreviewOptions(Options):
    """Options of `hmt-ds preview`; each field's docstring is its help text."""

    documents: AtLeastOne = 3
    """number of documents to show: the first ones in the order of training"""
    segments: AtLeastOne = 6
    """largest number of segments of each document to show; of a longer document its first and its last ones, half of
    each"""
    html: Annotated[FilePath | None, "FILE", AfterValidator(lambda path: path and check_page(path))] = None
    """HTML page to write, instead of printing text in the terminal (default: no page)"""
