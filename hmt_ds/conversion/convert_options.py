"""What ``hmt-ds convert`` takes besides source and target. Light to import: torch is not wanted for a help text."""

import argparse
from typing import Any


def add_convert_options(command: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = command.add_argument
    parts = ("model", "backbone", "memory", "adapter")
    add("--what", choices=parts, default="model", help="the whole (default) or a part")
    add("--merge", action="store_true", help="put LoRA adapters into the weights")
    add("--dtype", choices=("bf16", "fp32"), help="default: as the run computes, or as the source is")
    add("--backbone", metavar="DIR", help="the backbone's configuration, and its tokenizer")
    add("--dry-run", action="store_true", help="check all of it, write nothing")


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """They alone, by the names of `hmt_ds.conversion.convert.Options`."""
    return {name: getattr(arguments, name) for name in ("what", "merge", "dtype", "dry_run", "backbone")}
