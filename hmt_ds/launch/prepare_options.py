"""The options of `hmt-ds prepare`. Imports no torch: the command line builds its help from this module."""

from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, Options
from hmt_ds.config.sections import STRICT


@dataclass(frozen=True, config=STRICT)
class PrepareOptions(Options):
    """Options of `hmt-ds prepare`; each field's docstring is its help text."""

    processes: AtLeastOne | None = None
    """number of processes that tokenize, of about 0.5 GB memory each (default: one per CPU core, at most 16)"""
