"""Build a model on the meta device (a skeleton), and match a checkpoint's weights to its names and shapes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from hmt_ds.backbones import CausalLM, LoraSettings, select_trainable
from hmt_ds.backbones.transformers_internals import has_own_code
from hmt_ds.conversion.conversion_error import OWN_CODE, ConversionError, first_of
from hmt_ds.conversion.shards import bitwise_equal
from hmt_ds.conversion.weights import Weights
from hmt_ds.memory import HMT, MemorySettings


def skeleton(config: PreTrainedConfig, settings: MemorySettings, lora: LoraSettings | None = None) -> HMT:
    """Build an HMT on the meta device, whose weights have shapes but no values.

    Args:
        config: configuration of the backbone.
        settings: settings of the memory.
        lora: LoRA settings; None for a model without adapters.

    Raises:
        ConversionError: the backbone's Python code comes with the model, so a converted folder would lack it.
    """
    if has_own_code(config):
        raise ConversionError(f"{config.model_type} cannot be converted: {OWN_CODE}")
    with torch.device("meta"):
        backbone = CausalLM(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        if lora:
            select_trainable(backbone, "lora", lora)
        return HMT(backbone, settings)


def measure_width(config: PreTrainedConfig) -> int:
    """Return the width of a backbone's embeddings, measured on a model on the meta device.

    Args:
        config: configuration of the backbone.
    """
    return skeleton(config, MemorySettings(segment_length=1, mode="backbone")).backbone.dim


def with_recall_dim(memory: MemorySettings, config: PreTrainedConfig) -> MemorySettings:
    """Return memory settings whose ``recall_dim`` (width of the retrieval's cross-attention) is set.

    If the settings leave it open, it is the width of the backbone's embeddings.

    Args:
        memory: settings of the memory.
        config: configuration of the backbone.
    """
    return replace(memory, recall_dim=memory.recall_width(measure_width(config)))


def names_of(model: nn.Module) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Yield the names and the shape of each weight of a model, tied weights once.

    Yields:
        All names of a weight (several for a tied one), and the weight's shape.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for parameter, every in names.items():
        yield every, tuple(parameter.shape)


def buffers_of(model: nn.Module) -> set[str]:
    """Return the names of a model's persistent buffers, which its weight files store beside the weights."""
    return set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def match_weights(weights: Weights, model: nn.Module, origin: str) -> Weights:
    """Select the weights that a model needs from a checkpoint; tied weights once, under the first of their names.

    Args:
        weights: weights of a checkpoint, which may hold more than the model needs.
        model: the model, on the meta device.
        origin: name of the checkpoint in error messages.

    Returns:
        The model's weights and persistent buffers, in the model's shapes.

    Raises:
        ConversionError: naming a weight that is missing, has another shape, or is stored with other values than a
            weight that it is tied to.
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
                f"{names[0]} has the shape {list(weights.shapes[stored[0]])} in the files, {list(shape)} by the config"
            )
        elif apart := [n for n in stored[1:] if not bitwise_equal(weights.read(n), weights.read(stored[0]))]:
            raise ConversionError(
                f"{origin}: {apart[0]} and {stored[0]} differ, but the config ties them: set tie_word_embeddings to "
                "false in the config.json of the backbone"
            )
        else:
            chosen[stored[0]], shapes[names[0]] = names[0], shape
    if missing:
        raise ConversionError(
            f"the weight {first_of(missing)} is missing in {origin}: name a configuration and weights of the same model"
        )
    if wrong:
        raise ConversionError(f"{origin}: {first_of(wrong)}: name a configuration and weights of the same model")
    chosen |= {name: name for name in buffers_of(model) & weights.shapes.keys()}
    matched = weights.renamed(chosen.get)
    return Weights(matched.shapes | shapes, lambda name: reshaped(matched.read(name), shapes.get(name)))


def shape_fits(stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a weight stored in a checkpoint has the needed shape, or is a flattened tensor of that size.

    DeepSpeed's universal format stores weights flattened.

    Args:
        stored: the shape in the checkpoint.
        shape: the needed shape.
    """
    return stored == shape or stored == (torch.Size(shape).numel(),)


def reshaped(weight: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """Return a weight in another shape with as many elements; unchanged if ``shape`` is None.

    Args:
        weight: the weight.
        shape: the other shape.
    """
    return weight if shape is None else weight.view(shape)


def with_frozen(trained: Weights, frozen: Weights, model: HMT) -> Weights:
    """Join the trained weights of a run and the frozen weights of its backbone into the weights of the whole model.

    Args:
        trained: trained weights, by their names in the whole model.
        frozen: weights of the backbone, by the names in its files, with or without a prefix such as ``model.``.
        model: the whole model without adapters, on the meta device.
    """
    prefix = cast(CausalLM, model.backbone).model.base_model_prefix
    known = set(model.state_dict())

    def rename(name: str) -> str | None:
        full = [f"backbone.model.{name}", f"backbone.model.{prefix}.{name}"]
        return next((one for one in full if one in known), None)

    return combine(trained, frozen.renamed(rename))


def combine(first: Weights, second: Weights) -> Weights:
    """Join two sets of weights by name; a name in both gets the weight of ``first``.

    Args:
        first, second: the two sets.
    """
    return Weights(
        second.shapes | first.shapes,
        lambda name: (first if name in first.shapes else second).read(name),
    )
