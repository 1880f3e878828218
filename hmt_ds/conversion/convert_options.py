"""The options of `hmt-ds convert`, and what they require of its source.

Imports no torch: the command line builds its help from this module.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from hmt_ds.config.options import Options
from hmt_ds.config.sections import STRICT
from hmt_ds.conversion.conversion_error import ConversionError

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


def check_not_foreign(options: ConvertOptions, overrides: Sequence[str] = ()) -> None:
    """Reject ``--backbone`` and memory overrides: this source stores these settings itself."""
    given = [*(["--backbone"] if options.backbone else []), *overrides[:1]]
    if given:
        raise ConversionError(f"{given[0]}: this source has the setting itself")


def check_part(options: ConvertOptions, mode: str, train: str) -> None:
    """Check that the source has the part that ``--what`` names.

    Args:
        options: of the command.
        mode: the source's ``memory.mode``.
        train: the source's ``model.train``.
    """
    if options.what == "adapter" and train != "lora":
        raise ConversionError(f"--what adapter: there is none, model.train was {train}")
    if options.what == "memory" and mode == "backbone":
        raise ConversionError("--what memory: there is none, memory.mode was backbone")
    if options.merge and (train != "lora" or options.what not in ("model", "backbone")):
        raise ConversionError("--merge: only with --what model or backbone, of a LoRA run")
    if train == "lora" and options.what in ("model", "backbone") and not options.merge:
        raise ConversionError(f"--what {options.what} of a LoRA run needs --merge; or use --what adapter or memory")
