"""The options of `hmt-ds init`. Imports no torch: the command line builds its help from this module."""

from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options
from hmt_ds.config.sections import STRICT
from hmt_ds.planning.plan_options import check_fleet

Train = Literal["whole", "lora", "frozen"]


@dataclass(frozen=True, config=STRICT)
class InitOptions(Options):
    """The options of `hmt-ds init`. What is not given is asked for in a terminal; elsewhere the default is taken."""

    model: Annotated[str, "NAME"] = "HuggingFaceTB/SmolLM2-135M"
    """backbone: a Hugging Face folder or hub name"""
    data: Annotated[FilePath | None, "PATH"] = None
    """training documents: a file or folder of text, JSONL or Parquet; required"""
    validation: Annotated[FilePath | None, "PATH"] = None
    """held-out documents (default: none, so nothing is evaluated)"""
    train: Train = "whole"
    """weights of the backbone that are trained: whole, lora (adapters), or frozen"""
    steps: AtLeastOne = 1000
    """number of optimizer steps"""
    output: Annotated[FilePath | None, "FOLDER"] = None
    """folder of the run (default: runs/ and the name of the recipe)"""
    gpus: Annotated[str | None, "NxTYPE", AfterValidator(lambda text: text and check_fleet(text))] = None
    """GPUs to choose ZeRO stage and batch size for, such as 8xH100-80GB (default: this machine's)"""

    def conflicts(self) -> list[str]:
        """Return a line for each path that names nothing."""
        paths = {"--data": self.data, "--validation": self.validation}
        return [f"{name}: {path}: no such file or folder" for name, path in paths.items() if path and not path.exists()]
