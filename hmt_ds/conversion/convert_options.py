"""The options of `hmt-ds convert`, and checks that they suit the kind of checkpoint.

Imports no torch: the command line builds its help from this module.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from hmt_ds.config.options import Options
from hmt_ds.config.sections import STRICT, PathText
from hmt_ds.conversion.conversion_error import ConversionError

What = Literal["model", "backbone", "memory", "adapter"]


@dataclass(frozen=True, config=STRICT)
class ConvertOptions(Options):
    """Options of `hmt-ds convert`; each field's docstring is its help text."""

    what: What = "model"
    """part of the model to write; model: backbone and memory modules; backbone: without memory; memory: only the
    memory's modules; adapter: the LoRA adapters alone"""
    merge: bool = False
    """merge LoRA adapters into the weights of the backbone; needed for --what model or backbone of a LoRA run"""
    dtype: Literal["bf16", "fp32"] | None = None
    """dtype of the written weights; default: the source's own, or the dtype that the run computed in"""
    backbone: Annotated[PathText | None, "DIR"] = None
    """folder or hub name of the backbone's configuration and tokenizer, for checkpoints without a recipe"""
    push: Annotated[str | None, "OWNER/NAME"] = None
    """repository on the hub to upload the folder to; a new one is private"""
    dry_run: bool = False
    """check source and options, but write nothing"""


def check_not_foreign(options: ConvertOptions, overrides: Sequence[str] = ()) -> None:
    """Reject ``--backbone`` and overrides of memory settings for a checkpoint that stores its own settings.

    Args:
        options: options of ``hmt-ds convert``.
        overrides: the command line's settings of the memory, such as ``--memory.segment_length 1024``.

    Raises:
        ConversionError: naming the first option that is not allowed.
    """
    given = [*(["--backbone"] if options.backbone else []), *overrides[:1]]
    if given:
        raise ConversionError(f"{given[0]}: not allowed, because the source stores its own settings: remove the option")


def check_part(options: ConvertOptions, mode: str, train: str) -> None:
    """Check that a checkpoint has the part of the model that ``--what`` names, and that ``--merge`` fits both.

    Args:
        options: options of ``hmt-ds convert``.
        mode: the checkpoint's ``memory.mode``: ``hmt``, ``rmt`` or ``backbone``.
        train: the checkpoint's ``model.train``: ``whole``, ``lora`` or ``frozen``.

    Raises:
        ConversionError: naming the option, and why it does not fit the checkpoint.
    """
    if options.what == "adapter" and train != "lora":
        raise ConversionError(
            f"--what adapter: the source has no LoRA adapters, its model.train is {train}: use --what model"
        )
    if options.what == "memory" and mode == "backbone":
        raise ConversionError("--what memory: the source has no memory, its memory.mode is backbone: use --what model")
    if options.merge and (train != "lora" or options.what not in ("model", "backbone")):
        raise ConversionError(
            "--merge: only possible with --what model or backbone, for a run with LoRA adapters (model.train lora), "
            f"not with --what {options.what} and model.train {train}: remove --merge"
        )
    if train == "lora" and options.what in ("model", "backbone") and not options.merge:
        raise ConversionError(
            f"--what {options.what} of a LoRA run needs --merge; without it use --what adapter or memory"
        )
