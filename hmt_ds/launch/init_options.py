"""The options of `hmt-ds init`. Imports no torch: the command line builds its help from this module."""

from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options
from hmt_ds.config.sections import STRICT, PathText
from hmt_ds.planning.plan_options import check_fleet

Train = Literal["whole", "lora", "frozen"]


@dataclass(frozen=True, config=STRICT)
class InitOptions(Options):
    """Options of `hmt-ds init`; each field's docstring is its help text.

    A missing option is asked for in a terminal, and elsewhere takes its default.
    """

    model: Annotated[str, "NAME"] = "HuggingFaceTB/SmolLM2-135M"
    """backbone: a Hugging Face folder or hub name"""
    data: Annotated[PathText | None, "PATH"] = None
    """training documents, required: a file or folder of text, JSONL, CSV or Parquet, a pattern such as 'data/*.jsonl',
    or an address such as s3://bucket/data"""
    validation: Annotated[PathText | None, "PATH"] = None
    """held-out documents, in the formats of --data (default: none, so the run does no evaluation)"""
    train: Train = "whole"
    """which weights of the backbone to train beside the memory: all (whole), adapters (lora), or none (frozen)"""
    steps: AtLeastOne = 1000
    """length of the training run in optimizer steps"""
    output: Annotated[FilePath | None, "FOLDER"] = None
    """folder for checkpoints, metrics and logs of the run (default: runs/NAME for a recipe NAME.yaml)"""
    gpus: Annotated[str | None, "NxTYPE", AfterValidator(lambda text: text and check_fleet(text))] = None
    """number and type of GPUs to choose ZeRO stage and batch size for, such as 8xH100-80GB (default: those of this
    machine)"""

    def conflicts(self) -> list[str]:
        """Return an error line for each path of --data and --validation that does not exist."""
        paths = {"--data": self.data, "--validation": self.validation}
        return [
            f"{name}: {path}: no such file or folder: name documents that exist"
            for name, path in paths.items()
            if path and not is_there(path)
        ]


def is_there(source: str) -> bool:
    """Return whether a source of documents exists; True for an address, which is checked only when it is read.

    Args:
        source: file, folder, pattern, address or name on the hub.
    """
    return Path(source).exists() or "://" in source or (has_magic(source) and bool(glob(source, recursive=True)))  # noqa: PTH207
