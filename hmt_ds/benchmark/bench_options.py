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
    """Raise ValueError if a JSON file cannot be written to a path, or would overwrite a file of another type."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder, give a file")
    if file.is_file() and file.suffix != ".json":
        raise ValueError(f"{file} exists and is not a .json file, and would be overwritten: give another file")
    return file if file.exists() else check_folder(file)


def check_folder(folder: Path) -> Path:
    """Raise ValueError if a folder cannot be created at a path."""
    if reason := why_no_folder(folder):
        raise ValueError(reason)
    return folder


@dataclass(frozen=True, config=STRICT)
class BenchOptions(Options):
    """The options of `hmt-ds bench`."""

    steps: AtLeastOne = 3
    """number of timed optimizer steps"""
    # on GPUs the second step measures memory, the third compiles for the resulting plan, the fourth captures graphs
    warmup: Annotated[WholeNumber, Field(ge=0)] = 4
    """number of untimed optimizer steps before the timed ones; with fewer than the default a GPU is not at full
    speed"""
    tokens: Literal["random", "data"] = "random"
    """train on random tokens, or on the documents of the recipe"""
    fresh: bool = False
    """begin new documents in each window, instead of carrying the memories of the previous window on"""
    json: Annotated[FilePath | None, "FILE", AfterValidator(check_json)] = None
    """write all measurements to a JSON file, with the seconds of every step"""
    trace: Annotated[FilePath | None, "FOLDER", AfterValidator(check_folder)] = None
    """write a profiler trace of one more step into a folder, to open in Perfetto or chrome://tracing"""
    reference: Annotated[FilePath | None, "DIR"] = None
    """also time HMT-pytorch on the same work, from a clone in this folder (one GPU only)"""

    def conflicts(self) -> list[str]:
        """Return a line for each pair of options that exclude each other."""
        return ["--fresh: only with --tokens random"] if self.fresh and self.tokens == "data" else []
