"""A model, or a part of it, with everything that `hmt-ds convert` writes into a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from hmt_ds.conversion.convert_options import What
from hmt_ds.conversion.shards import plan_shards
from hmt_ds.conversion.weights import Weights
from hmt_ds.data import DataError, load_tokenizer
from hmt_ds.memory import MemorySettings
from hmt_ds.reporting.counted import counted

BACKBONE = "backbone.model."
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Export:
    """A model, or a part of it, with everything that `hmt-ds convert` writes into a Hugging Face folder.

    Attributes:
        what: ``model``, ``backbone``, ``memory`` or ``adapter``.
        weights: weights to write, by their names in the whole model; an adapter's by peft's names.
        config: configuration of the backbone.
        settings: settings of the memory.
        dtype: dtype of the written weights.
        tokenizer: tokenizer of a model or backbone; None if unknown, and for other parts.
        generation: the backbone's generation settings, for a model or backbone; None for other parts.
        lora: peft's configuration, for an adapter; None for other parts.
        card: text of README.md.
        pictures: image files that README.md shows.
    """

    what: What
    weights: Weights
    config: PreTrainedConfig
    settings: MemorySettings
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase | None = None
    generation: GenerationConfig | None = None
    lora: LoraConfig | None = None
    card: str = ""
    pictures: tuple[Path, ...] = ()

    @property
    def stem(self) -> str:
        """Prefix of the weight files' names: ``model`` of model.safetensors, ``adapter_model`` of
        adapter_model.safetensors."""
        return {"memory": "memory", "adapter": "adapter_model"}.get(self.what, "model")

    def named_weights(self) -> Weights:
        """Return the weights by the names that they get in the Hugging Face folder's files."""
        if self.what == "model":
            return self.weights.renamed(lambda name: f"hmt.{name}")
        return self.weights.without_prefix(BACKBONE) if self.what == "backbone" else self.weights

    def summary(self) -> str:
        """Describe the weights in one line for the user: how many, number of parameters, dtype, bytes and files."""
        weights = self.named_weights()
        numbers = sum(torch.Size(shape).numel() for shape in weights.shapes.values())
        shards = len(plan_shards(weights, self.dtype, self.stem))
        size = numbers * self.dtype.itemsize
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.what}: {len(weights.shapes):,} weights, {numbers:,} numbers, {dtype}, {size:,} bytes, "
            f"{counted(shards, 'file')}"
        )


def select_part(weights: Weights, what: What) -> Weights:
    """Select the weights of the whole model, of the backbone, or of the memory modules.

    Args:
        weights: weights of the whole model.
        what: ``model``, ``backbone`` or ``memory``.
    """
    if what == "model":
        return weights
    return weights.renamed(lambda name: name if name.startswith(BACKBONE) == (what == "backbone") else None)


def find_tokenizer(name: str | None, notes: list[str], what: What) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model or backbone for its converted folder; None, with a warning, if that fails.

    Args:
        name: folder or hub name of the tokenizer; None if unknown.
        notes: lines for the user, to which the warning is appended.
        what: exported part; a ``memory`` or an ``adapter`` gets no tokenizer.
    """
    if name is None or what not in ("model", "backbone"):
        return None
    try:
        return load_tokenizer(name)
    except DataError as error:
        notes.append(f"warning: no tokenizer in the folder: {error}")
        return None


def generation_config(source: str | None, config: PreTrainedConfig) -> GenerationConfig:
    """Return the backbone's own generation settings, or else transformers' defaults for its configuration.

    Args:
        source: folder or hub name of the backbone; None for random weights.
        config: configuration of the backbone.
    """
    try:
        if source is not None:
            return GenerationConfig.from_pretrained(source)
    except (OSError, ValueError):
        pass
    return GenerationConfig.from_model_config(config)
