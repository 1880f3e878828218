"""The options of `hmt-ds convert`. Imports no torch: the command line builds its help from this module."""

from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from hmt_ds.config.options import Options
from hmt_ds.config.sections import STRICT

What = Literal["model", "backbone", "memory", "adapter"]


@dataclass(frozen=True, config=STRICT)
class ConvertOptions(Options):
    """The options of `hmt-ds convert`."""

    what: What = "model"
    """the whole model, or a part of it"""
    merge: bool = False
    """merge LoRA adapters into the weights"""
    dtype: Literal["bf16", "fp32"] | None = None
    """type of the weights; default: what the run computes in, or the source's type"""
    backbone: Annotated[str | None, "DIR"] = None
    """folder or hub name of the backbone's configuration and tokenizer, for checkpoints without a recipe"""
    dry_run: bool = False
    """check everything, write nothing"""
