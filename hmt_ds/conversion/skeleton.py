"""A model without numbers: what weights there must be, of which shapes, under which names; and filling the gaps."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hmt_ds.backbones import CausalLM, LoraSettings, select_trainable
from hmt_ds.backbones.transformers_internals import has_own_code
from hmt_ds.conversion.conversion_error import ConversionError, shown
from hmt_ds.conversion.shards import same
from hmt_ds.conversion.weights import Weights
from hmt_ds.memory import HMT, MemorySettings


def skeleton(config: Any, settings: MemorySettings, lora: LoraSettings | None = None) -> HMT:
    """An HMT of that configuration on the meta device.

    Raises:
        ConversionError: if the backbone has code of its own, which a folder of ours would not have.
    """
    if has_own_code(config):
        raise ConversionError(f"{config.model_type} has code of its own (model.trust_remote_code): it is not converted")
    with torch.device("meta"):
        backbone = CausalLM(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        if lora:
            select_trainable(backbone, "lora", lora)
        return HMT(backbone, settings)


def names_of(model: nn.Module) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Each weight once, with all its names (tied ones have two, the first counts) and its shape."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for parameter, every in names.items():
        yield every, tuple(parameter.shape)


def buffers_of(model: nn.Module) -> set[str]:
    """Names of the buffers that a model's file holds."""
    return set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def fit(weights: Weights, model: nn.Module, origin: str) -> Weights:
    """The weights that a model has, under their first names.

    Args:
        origin: where they come from, for people.

    Raises:
        ConversionError: naming what is missing or has another shape.
    """
    chosen: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    missing, wrong = [], []
    for names, shape in names_of(model):
        stored = [name for name in names if name in weights.shapes]
        if not stored:
            missing.append(names[0])
        elif not stands_for(weights.shapes[stored[0]], shape):
            wrong.append(
                f"{names[0]} has the shape {list(weights.shapes[stored[0]])} there, {list(shape)} by the config"
            )
        elif apart := [name for name in stored[1:] if not same(weights.read(name), weights.read(stored[0]))]:
            raise ConversionError(
                f"{origin}: {apart[0]} is not {stored[0]}, to which the config ties it: say tie_word_embeddings false "
                "in the config.json of the backbone"
            )
        else:
            chosen[stored[0]], shapes[names[0]] = names[0], shape
    if missing:
        raise ConversionError(f"{shown(missing)} is not in {origin}")
    if wrong:
        raise ConversionError(f"{origin}: {shown(wrong)}")
    chosen |= {name: name for name in buffers_of(model) & weights.shapes.keys()}
    fitted = weights.renamed(chosen.get)
    return Weights(fitted.shapes | shapes, lambda name: whole(fitted.read(name), shapes.get(name)))


def stands_for(stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """The same shape; or the same numbers flat, as DeepSpeed's universal folders have them from stage 3."""
    return stored == shape or stored == (torch.Size(shape).numel(),)


def whole(weight: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """In its shape; buffers are as they are."""
    return weight if shape is None else weight.view(shape)


def with_frozen(trained: Weights, frozen: Weights, model: HMT) -> Weights:
    """Trained weights, and for those that are not among them the backbone's own as it came from elsewhere.

    Args:
        frozen: under the names of its files, with or without the prefix of transformers' base model.
        model: the skeleton, without adapters.
    """
    prefix = model.backbone.model.base_model_prefix  # type: ignore[attr-defined]
    known = set(model.state_dict())

    def place(name: str) -> str | None:
        full = [f"backbone.model.{name}", f"backbone.model.{prefix}.{name}"]
        return next((one for one in full if one in known), None)

    return both(trained, frozen.renamed(place))


def both(first: Weights, second: Weights) -> Weights:
    """All weights of two; where both have one, the first's."""
    return Weights(
        second.shapes | first.shapes,
        lambda name: (first if name in first.shapes else second).read(name),
    )
