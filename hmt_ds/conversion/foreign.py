"""Convert checkpoints without a recipe: weights of HMT-pytorch, and DeepSpeed folders of HMT-pytorch or hmt_ds."""

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError
from transformers import PreTrainedConfig

from hmt_ds.backbones import read_config
from hmt_ds.config.config_error import ConfigError, describe
from hmt_ds.config.load import apply_overrides
from hmt_ds.config.recipe import Memory
from hmt_ds.config.sections import Section
from hmt_ds.conversion.adapters import ADAPTER, merge_found
from hmt_ds.conversion.card import card
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.convert_options import ConvertOptions, check_part
from hmt_ds.conversion.export import DTYPES, Export, find_tokenizer, generation_config, select_part
from hmt_ds.conversion.formats import mode_of, read_foreign
from hmt_ds.conversion.skeleton import match_weights, measure_width, skeleton, with_recall_dim
from hmt_ds.conversion.weights import Weights
from hmt_ds.memory import MemorySettings


class ForeignLora(Section):
    """The command line's section ``lora`` for a checkpoint without a recipe, which does not store LoRA's alpha.

    Attributes:
        alpha: scale of the adapters' output, which is multiplied by alpha / rank; default: HMT-pytorch's, 32.
    """

    alpha: float = Field(32, gt=0)


class Foreign(Section):
    """Command-line settings for a checkpoint without a recipe: ``--memory.KEY VALUE`` and ``--lora.alpha VALUE``."""

    memory: Memory
    lora: ForeignLora = ForeignLora()


def export_foreign(source: Path, options: ConvertOptions, overrides: Sequence[str], notes: list[str]) -> Export:
    """Read the whole model, or the part that the option ``--what`` names, from a checkpoint of HMT-pytorch, DeepSpeed
    or accelerate.

    Args:
        source: file or folder of the checkpoint.
        options: options of ``hmt-ds convert``.
        overrides: settings of the memory from the command line, such as ``--memory.segment_length 1024``.
        notes: lines for the user, to which warnings are appended.

    Raises:
        ConversionError: if the checkpoint cannot be read, or options are missing or do not fit it.
        ConfigError: if settings of the memory are missing or wrong.
    """
    weights, ignored = read_foreign(source)
    if ignored:
        notes.append(f"ignored, not part of the model: {', '.join(ignored[:8])}{' ...' if len(ignored) > 8 else ''}")
    if not options.backbone:
        raise ConversionError(f"{source} does not name its backbone: add --backbone FOLDER, a folder with config.json")
    config = read_config(options.backbone)
    settings, alpha = foreign_settings(weights, config, overrides)
    check_part(options, settings.mode, "whole")
    if any(ADAPTER in name for name in weights.shapes):
        notes.append(f"LoRA adapters are merged into the weights, with alpha {alpha:g}: --lora.alpha changes it")
    weights = merge_found(weights, config, settings, alpha)
    weights = match_weights(weights, skeleton(config, settings), str(source))
    return Export(
        options.what,
        select_part(weights, options.what),
        config,
        settings,
        DTYPES[options.dtype or "fp32"],
        tokenizer=find_tokenizer(options.backbone, notes, options.what),
        generation=generation_config(options.backbone, config),
        card=card(options.what, source.name, settings),
    )


def foreign_settings(
    weights: Weights, config: PreTrainedConfig, overrides: Sequence[str]
) -> tuple[MemorySettings, float]:
    """Derive the memory's settings and LoRA's alpha for a checkpoint of another program, which has no recipe.

    Memory tokens per memory and widths follow from the shapes of the weights; the command line gives all other
    settings.

    Args:
        weights: weights of the checkpoint, under hmt_ds's names.
        config: configuration of the backbone.
        overrides: settings from the command line, such as ``--memory.segment_length 1024``.

    Returns:
        The memory's settings, and LoRA's alpha.

    Raises:
        ConfigError: with a line for each missing or wrong setting.
    """
    memory: dict[str, object] = {"mode": mode_of(weights)}
    if "sink.embeddings.weight" in weights.shapes:
        memory["interface"] = "adapted"
    width = measure_width(config)
    for key, name in (("memory_tokens", "initial_prompt.embeddings"), ("recall_dim", "recall.query")):
        if shape := weights.shapes.get(f"{name}.weight"):
            memory[key] = math.prod(shape) // width  # not shape[0]: DeepSpeed's universal folders store flat weights
    sections = {"memory": memory}
    problems = apply_overrides(sections, list(overrides))
    problems += [
        f"--{key}: a checkpoint without a recipe takes only --memory keys and --lora.alpha; remove it"
        for key in sections.keys() - Foreign.model_fields
    ]
    try:
        said = Foreign.model_validate({key: sections[key] for key in sections.keys() & Foreign.model_fields})
    except ValidationError as error:
        problems += [f"--{line}" for line in describe(error, Foreign)]
    if problems:
        raise ConfigError(problems)
    return with_recall_dim(said.memory, config), said.lora.alpha
