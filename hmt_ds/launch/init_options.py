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
    """The options of `hmt-ds init`; a missing one is asked for in a terminal, and elsewhere takes its default. The text
    below each field is its help."""

    model: Annotated[str, "NAME"] = "HuggingFaceTB/SmolLM2-135M"
    """backbone: a Hugging Face folder or hub name"""
    data: Annotated[FilePath | None, "PATH"] = None
    """training documents, required: a file or folder of text, JSONL or Parquet"""
    validation: Annotated[FilePath | None, "PATH"] = None
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
            if path and not path.exists()
        ]
