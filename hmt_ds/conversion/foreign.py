"""The memory of a checkpoint without a recipe: what its weights and the command line say."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field, ValidationError

from hmt_ds.config.config_error import ConfigError, describe
from hmt_ds.config.load import apply_overrides
from hmt_ds.config.recipe import Memory, Section
from hmt_ds.conversion.formats import mode_of
from hmt_ds.conversion.skeleton import skeleton
from hmt_ds.conversion.weights import Weights
from hmt_ds.memory import MemorySettings


class ForeignLora(Section):
    """HMT-pytorch's files do not say how adapters are scaled; all of its scripts have this alpha."""

    alpha: float = Field(32, gt=0)


class Foreign(Section):
    """What the command line says of a checkpoint without a recipe."""

    memory: Memory
    lora: ForeignLora = ForeignLora()


def foreign_settings(weights: Weights, config: Any, overrides: Sequence[str]) -> tuple[MemorySettings, float]:
    """What the weights' shapes say, and the command line the rest; and the adapters' alpha.

    Raises:
        ConfigError: if something is missing or wrong.
    """
    memory: dict[str, Any] = {"mode": mode_of(weights)}
    width = width_of(config)
    for key, name in (("memory_tokens", "initial_prompt.embeddings"), ("recall_dim", "recall.query")):
        if shape := weights.shapes.get(f"{name}.weight"):
            memory[key] = math.prod(shape) // width  # shapes may be flat
    sections = {"memory": memory}
    problems = apply_overrides(sections, list(overrides))
    problems += [
        f"--{key}: a checkpoint without a recipe takes --memory keys and --lora.alpha alone"
        for key in sections.keys() - Foreign.model_fields
    ]
    try:
        said = Foreign.model_validate({key: sections[key] for key in sections.keys() & Foreign.model_fields})
    except ValidationError as error:
        problems += [f"--{line}" for line in describe(error, Foreign)]
    if problems:
        raise ConfigError(problems)
    return settings_of(said.memory, config), said.lora.alpha


def settings_of(memory: MemorySettings, config: Any) -> MemorySettings:
    """The recipe's sizes; the recall is as wide as the embeddings unless it says otherwise."""
    return replace(memory, recall_dim=memory.recall_width(width_of(config)))


def width_of(config: Any) -> int:
    """Of the embeddings."""
    return skeleton(config, MemorySettings(segment_length=1, mode="backbone")).backbone.dim
