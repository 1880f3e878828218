"""``hmt-ds convert SOURCE TARGET``: write checkpoints of hmt_ds, HMT-pytorch or DeepSpeed as Hugging Face folders."""

from collections.abc import Sequence
from pathlib import Path

import torch

from hmt_ds.backbones import BackboneError, read_config, read_converted
from hmt_ds.checkpoint import CheckpointError
from hmt_ds.config.config_error import ConfigError
from hmt_ds.conversion.card import card, picture_of
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.convert_options import ConvertOptions, check_not_foreign, check_part
from hmt_ds.conversion.export import DTYPES, Export, find_tokenizer, generation_config, select_part
from hmt_ds.conversion.folder import write_folder
from hmt_ds.conversion.foreign import export_foreign
from hmt_ds.conversion.formats import kind_of
from hmt_ds.conversion.from_run import export_run
from hmt_ds.conversion.push import check_push, push_folder
from hmt_ds.conversion.skeleton import match_weights, skeleton
from hmt_ds.conversion.weights import folder_weights
from hmt_ds.data import DataError
from hmt_ds.memory import MemorySettings

# errors in the user's input: their messages are printed without a traceback
MISTAKES = (ConversionError, BackboneError, CheckpointError, ConfigError, DataError)


def convert(source: Path, target: Path, options: ConvertOptions, overrides: Sequence[str] = ()) -> list[str]:
    """Convert a checkpoint into a Hugging Face folder; return lines for the user about the result.

    Args:
        source: a run, its folder of checkpoints, one checkpoint, a converted folder, HMT-pytorch's weights, or a
            DeepSpeed folder.
        target: the folder to create; must not exist.
        options: options of ``hmt-ds convert``.
        overrides: settings of the memory, such as ``--memory.segment_length 1024``, for checkpoints without a recipe.

    Raises:
        ValueError: the conversion is not possible; a subclass such as ConversionError, with a line for each problem.
    """
    if target.exists():
        raise ConversionError(f"{target} exists already: name a new folder")
    if options.push is not None:
        check_push(options.push)
    notes: list[str] = []
    export = export_source(source, options, overrides, notes)
    if options.dry_run:
        return [*notes, f"would write {target}", export.summary()]
    write_folder(export, target)
    lines = [*notes, export.summary(), f"written and verified: {target}"]
    return lines if options.push is None else [*lines, f"pushed to {push_folder(target, options.push)}"]


def export_source(source: Path, options: ConvertOptions, overrides: Sequence[str], notes: list[str]) -> Export:
    """Read the whole model, or the part that the option ``--what`` names, from a checkpoint of any supported kind.

    Args:
        source: a run, its folder of checkpoints, one checkpoint, a converted folder, HMT-pytorch's weights, or a
            DeepSpeed folder.
        options: options of ``hmt-ds convert``.
        overrides: settings of the memory, such as ``--memory.segment_length 1024``, for checkpoints without a recipe.
        notes: lines for the user, to which warnings are appended.

    Raises:
        ConversionError: if the source cannot be converted with the options.
        ConfigError: if settings of the memory are missing or wrong.
    """
    kind = kind_of(source)
    if kind in ("run", "checkpoints", "checkpoint"):
        check_not_foreign(options, overrides)
        return export_run(source, options, notes)
    if kind == "hugging_face":
        check_not_foreign(options, overrides)
        return export_converted(source, options)
    return export_foreign(source, options, overrides, notes)


def export_converted(source: Path, options: ConvertOptions) -> Export:
    """Read the whole model, or the part that the option ``--what`` names, from a folder that ``hmt-ds convert`` wrote.

    Args:
        source: the converted folder.
        options: options of ``hmt-ds convert``.

    Raises:
        ConversionError: if the folder was not written by ``hmt-ds convert``, or lacks the part that ``--what`` names.
    """
    converted = read_converted(str(source))
    if converted is None:
        raise ConversionError(
            f"{source} is a model without memory: train it first, with a recipe whose model.source is this folder"
        )
    config, settings = read_config(str(source)), MemorySettings(**converted["memory"])
    check_part(options, settings.mode, "whole")
    weights = match_weights(folder_weights(source).without_prefix("hmt."), skeleton(config, settings), str(source))
    return Export(
        options.what,
        select_part(weights, options.what),
        config,
        settings,
        DTYPES[options.dtype] if options.dtype else getattr(torch, converted.get("dtype", "float32")),
        tokenizer=find_tokenizer(str(source), [], options.what),
        generation=generation_config(str(source), config),
        card=card(options.what, source.name, settings),
        pictures=tuple(filter(None, [picture_of(source)])),
    )
