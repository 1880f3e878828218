"""The options of `hmt-ds bench`, parsed by the command to check them, and parsed again by the ranks that it starts.

Imports no torch: the command line builds its help from this module.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options, WholeNumber
from hmt_ds.config.sections import STRICT
from hmt_ds.config.value_checks import why_no_folder


def check_json(file: Path) -> Path:
    """Check the path of a JSON file to write, and return it unchanged.

    Args:
        file: the path.

    Raises:
        ValueError: the path is a folder, or an existing file of another type, which would be overwritten.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a folder: give a .json file")
    if file.is_file() and file.suffix != ".json":
        raise ValueError(f"{file} exists and is not a .json file, and would be overwritten: give another file")
    return file if file.exists() else check_folder(file)


def check_folder(folder: Path) -> Path:
    """Check the path of a folder to write to, and return it unchanged.

    Args:
        folder: the path.

    Raises:
        ValueError: if the folder cannot be created.
    """
    if reason := why_no_folder(folder):
        raise ValueError(reason)
    return folder


@dataclass(frozen=True, config=STRICT)
class BenchOptions(Options):
    """Options of `hmt-ds bench`; each field's docstring is its help text."""

    steps: AtLeastOne = 3
    """number of optimizer steps to time"""
    # on GPUs the second step measures memory, the third compiles for the resulting plan, the fourth captures graphs
    warmup: Annotated[WholeNumber, Field(ge=0)] = 4
    """number of untimed optimizer steps before the timed ones; with fewer than the default a GPU is not at full speed,
    because kernels are still compiled"""
    tokens: Literal["random", "data"] = "random"
    """tokens to train on: ``random`` token ids, or the documents of the recipe (``data``)"""
    fresh: bool = False
    """begin new documents in each batch, only with --tokens random (default: carry memories over from batch to batch,
    as in long documents)"""
    json: Annotated[FilePath | None, "FILE", AfterValidator(check_json)] = None
    """JSON file to write all measurements to, with the seconds of every step (default: only print tables)"""
    trace: Annotated[FilePath | None, "FOLDER", AfterValidator(check_folder)] = None
    """folder to write a profiler trace of one more step into, to open in Perfetto or chrome://tracing (default: no
    trace)"""
    reference: Annotated[FilePath | None, "DIR"] = None
    """folder of a clone of HMT-pytorch, to time it too on the same work, on one GPU (default: time hmt_ds alone)"""

    def conflicts(self) -> list[str]:
        """Return an error line for each pair of options that exclude each other; an empty list if there is none."""
        return (
            ["--fresh: only with --tokens random, not with --tokens data: leave one of them out"]
            if self.fresh and self.tokens == "data"
            else []
        )
