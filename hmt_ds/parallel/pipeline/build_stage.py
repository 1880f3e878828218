"""Divide a model's layers among pipeline stages, and build one stage without the weights of the others."""

from itertools import pairwise
from typing import Any

import torch
from deepspeed.runtime.utils import partition_balanced
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from hmt_ds.backbones import (
    CausalLM,
    LoraSettings,
    build_model,
    fill_memory,
    read_config,
    read_converted,
    select_trainable,
)
from hmt_ds.backbones.compute import find_layers
from hmt_ds.backbones.converted import BACKBONE_KEY_MAPPING
from hmt_ds.backbones.stages import LayerRange, embedding_width, layer_ranges, load_stage, trim_to_stage
from hmt_ds.distributed.deepspeed_internals import mark_replicated
from hmt_ds.memory import HMT, MemorySettings
from hmt_ds.parallel.build_hmt import MEMORY_SEED, initialise_prompts
from hmt_ds.parallel.pipeline.layer_times import LayerTimes

STAND_IN = "stand_in"


def stage_layers(
    config: PretrainedConfig, stages: int, split: str | list[int] | LayerTimes = "auto"
) -> list[LayerRange]:
    """Divide a model's layers among pipeline stages; return the range of layer indices of each stage.

    Args:
        config: configuration of the backbone.
        stages: number of stages.
        split: the number of layers of each stage; or measured times of a layer and of the head, to make the slowest
            stage as fast as possible; or ``auto``, to make the stage with the most parameters as small as possible. The
            head counts, because it is a matrix product; embeddings, which are lookups, do not.
    """
    if isinstance(split, list):
        return layer_ranges(split)
    costs = costs_by_time(config, split) if isinstance(split, LayerTimes) else costs_by_size(config)
    boundaries = [int(boundary) for boundary in partition_balanced(costs, stages)]
    return [LayerRange(first, end, len(costs)) for first, end in pairwise(boundaries)]


def costs_by_time(config: PretrainedConfig, times: LayerTimes) -> list[float]:
    """Return the seconds that each layer takes, from measured times; the last layer's include the output head's.

    Args:
        config: configuration of the backbone.
        times: measured seconds of a layer and of the head.
    """
    layers = config.get_text_config().num_hidden_layers
    return [times.layer] * (layers - 1) + [times.layer + times.head]


def costs_by_size(config: PretrainedConfig) -> list[float]:
    """Return the number of parameters of each layer of a backbone; the last layer's number includes the output head.

    Args:
        config: configuration of the backbone.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    holder, name = find_layers(model)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in getattr(holder, name)]
    sizes[-1] += model.get_output_embeddings().weight.numel()
    return sizes


def build_stage(
    source: str | dict[str, Any],
    memory: MemorySettings,
    layers: LayerRange,
    *,
    dtype: torch.dtype,
    train: str = "whole",
    lora: LoraSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> HMT:
    """Build one pipeline stage of a backbone, with the stage's memory modules; weights keep the whole model's names.

    From a folder, a rank reads only the weights of its stage. Random weights are created for the whole model and then
    cut, so that training starts from the same numbers with any number of stages.

    Args:
        source: a folder, a hub name, or a transformers configuration for random weights.
        memory: settings of the memory.
        layers: indices of the stage's layers.
        dtype: dtype of the weights.
        train: which weights of the backbone are trained: ``whole``, ``frozen`` or ``lora``.
        lora: LoRA settings; required if ``train`` is ``lora``.
        seed: seed of all random weights.
        device: device on which the stage is built.
        trust_remote_code: whether Python code of the folder or the hub model may run.
    """
    config = read_config(source, trust_remote_code=trust_remote_code)
    if isinstance(source, dict):
        backbone = build_model(source, dtype=dtype, seed=seed, device=device)
        trim_to_stage(backbone, layers)
    else:
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if read_converted(source):
            options = {"key_mapping": BACKBONE_KEY_MAPPING}
        backbone = CausalLM(load_stage(source, layers, config, dtype=dtype, **options), embedding_width(config))
    select_trainable(backbone, train, lora, seed)
    # every stage creates all memory modules and then trims them, so that they draw the same numbers everywhere
    torch.manual_seed(seed ^ MEMORY_SEED)
    model = HMT(backbone, memory)
    trim_memory(model, layers)
    if read_converted(source):
        fill_memory(model, str(source))
    for name, child in model.named_children():
        if name != "backbone":
            child.to(dtype)
    return model


def trim_memory(model: HMT, layers: LayerRange) -> None:
    """Remove from a pipeline stage the memory modules that belong to other stages.

    The last stage keeps the cross-attention that retrieves memories, the first one the prompt embeddings.

    Args:
        model: this rank's stage, changed in place.
        layers: indices of the stage's layers.
    """
    if layers.is_first:
        initialise_prompts(model)
    first, last = layers.is_first, layers.is_last
    has_memory_modules = len(list(model.children())) > 1
    for name in [name for name, _ in model.named_children()]:
        if name != "backbone" and not (last if name == "recall" else first):
            delattr(model, name)
    if has_memory_modules and all(name.startswith("backbone.") for name, _ in model.named_parameters()):
        # DeepSpeed all-reduces gradient norms across stages one parameter group at a time, so that every stage must
        # have a group of memory modules. Replicated parameters do not count in the norm.
        weight = nn.Parameter(torch.zeros(1))
        mark_replicated(weight)
        model.register_parameter(STAND_IN, weight)
