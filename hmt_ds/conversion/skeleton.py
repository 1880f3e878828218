"""A model on the meta device, which says what weights there must be; matching a checkpoint's weights to it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from hmt_ds.backbones import CausalLM, LoraSettings, select_trainable
from hmt_ds.backbones.transformers_internals import has_own_code
from hmt_ds.conversion.conversion_error import ConversionError, first_of
from hmt_ds.conversion.shards import bitwise_equal
from hmt_ds.conversion.weights import Weights
from hmt_ds.memory import HMT, MemorySettings


def skeleton(config: PreTrainedConfig, settings: MemorySettings, lora: LoraSettings | None = None) -> HMT:
    """Build an HMT on the meta device, where weights have shapes but no values.

    Raises:
        ConversionError: if the backbone has its own code, which a converted folder would lack.
    """
    if has_own_code(config):
        raise ConversionError(f"{config.model_type} has its own code (model.trust_remote_code): it cannot be converted")
    with torch.device("meta"):
        backbone = CausalLM(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        if lora:
            select_trainable(backbone, "lora", lora)
        return HMT(backbone, settings)


def measure_width(config: PreTrainedConfig) -> int:
    """Return the width of any backbone's embeddings, measured on a skeleton."""
    return skeleton(config, MemorySettings(segment_length=1, mode="backbone")).backbone.dim


def with_recall_dim(memory: MemorySettings, config: PreTrainedConfig) -> MemorySettings:
    """Return memory settings with ``recall_dim`` filled in: by default the width of the embeddings."""
    return replace(memory, recall_dim=memory.recall_width(measure_width(config)))


def names_of(model: nn.Module) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Yield each weight once, with all its names (tied weights have two; the first counts) and its shape."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for parameter, every in names.items():
        yield every, tuple(parameter.shape)


def buffers_of(model: nn.Module) -> set[str]:
    """Return the names of the buffers that a model's file holds."""
    return set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def match_weights(weights: Weights, model: nn.Module, origin: str) -> Weights:
    """Select a model's weights from a checkpoint, by their first names in the model.

    Args:
        weights: of a checkpoint.
        model: a skeleton.
        origin: what the checkpoint is called in errors.

    Raises:
        ConversionError: naming a weight that is missing, has another shape, or differs from one that it is tied to.
    """
    chosen: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    missing, wrong = [], []
    for names, shape in names_of(model):
        stored = [name for name in names if name in weights.shapes]
        if not stored:
            missing.append(names[0])
        elif not shape_fits(weights.shapes[stored[0]], shape):
            wrong.append(
                f"{names[0]} has the shape {list(weights.shapes[stored[0]])} there, {list(shape)} by the config"
            )
        elif apart := [n for n in stored[1:] if not bitwise_equal(weights.read(n), weights.read(stored[0]))]:
            raise ConversionError(
                f"{origin}: {apart[0]} and {stored[0]} differ, but the config ties them: set tie_word_embeddings to "
                "false in the config.json of the backbone"
            )
        else:
            chosen[stored[0]], shapes[names[0]] = names[0], shape
    if missing:
        raise ConversionError(f"{first_of(missing)} is not in {origin}")
    if wrong:
        raise ConversionError(f"{origin}: {first_of(wrong)}")
    chosen |= {name: name for name in buffers_of(model) & weights.shapes.keys()}
    matched = weights.renamed(chosen.get)
    return Weights(matched.shapes | shapes, lambda name: reshaped(matched.read(name), shapes.get(name)))


def shape_fits(stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a stored shape is right, flattened or not: universal folders of stage 3 hold flat weights."""
    return stored == shape or stored == (torch.Size(shape).numel(),)


def reshaped(weight: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Return a weight in the given shape; with None, as for a buffer, return it unchanged."""
    return weight if shape is None else weight.view(shape)


def with_frozen(trained: Weights, frozen: Weights, model: HMT) -> Weights:
    """Add the backbone's frozen weights to the trained ones.

    Args:
        trained: by our names.
        frozen: by the names of the backbone's files, with or without the prefix of transformers' base model.
        model: a skeleton without adapters.
    """
    prefix = cast(CausalLM, model.backbone).model.base_model_prefix
    known = set(model.state_dict())

    def rename(name: str) -> str | None:
        full = [f"backbone.model.{name}", f"backbone.model.{prefix}.{name}"]
        return next((one for one in full if one in known), None)

    return combine(trained, frozen.renamed(rename))


def combine(first: Weights, second: Weights) -> Weights:
    """Join two sets of weights; where both have a name, the first one's weight counts."""
    return Weights(
        second.shapes | first.shapes,
        lambda name: (first if name in first.shapes else second).read(name),
    )
