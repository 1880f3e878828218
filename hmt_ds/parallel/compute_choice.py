"""Resolve ``auto`` values of the recipe's ``compute`` section from the recipe, the model and the device."""

import os
from dataclasses import replace
from typing import cast

import psutil
import torch
from torch import nn

from hmt_ds.backbones import CausalLM, is_quantized
from hmt_ds.backbones.compute import checkpoint_layers, decoder_layers, liger_knows, use_liger
from hmt_ds.backbones.transformers_internals import is_recurrent
from hmt_ds.distributed.deepspeed_internals import full_numel
from hmt_ds.distributed.process_group import all_reduce_min, world_size
from hmt_ds.memory import HMT
from hmt_ds.parallel.deepspeed_config.fill import DsConfig, offloads, share_on_gpu, stage_of
from hmt_ds.parallel.layer_groups import can_group_layers, group_layers
from hmt_ds.parallel.settings import ComputeSettings, Kernels, Recompute, Reduction

# Positions times parameters of a layer below which the GPU finishes a layer's kernels before the host has launched the
# next ones: launches take 0.1 to 1 ms per layer (measured on an H100).
LAUNCH_BOUND = 2.5e11
FREE_SHARE = 0.75  # of a GPU's memory that whole weights and gradient sums may take; the rest is for activations


def resolve(compute: ComputeSettings, model: HMT, ds_config: DsConfig, device: torch.device) -> ComputeSettings:
    """Return ``compute`` settings with each ``auto`` replaced by a value that suits the model and the device.

    ``recompute`` and ``summary_batch`` may stay ``auto``: they are chosen during training, from the peak memory
    measured in the second step.

    Args:
        compute: settings of the recipe.
        model: the model, before DeepSpeed wraps it.
        ds_config: DeepSpeed's configuration, every ``auto`` filled in.
        device: device of this rank.
    """
    reduction, kernels, leaf_layers = compute.reduction, compute.kernels, compute.leaf_layers
    if reduction == "auto":
        reduction = "step" if whole_gradient_fits(model, ds_config, device) else "segment"
    if kernels == "auto":
        kernels = best_kernels(cast(CausalLM, model.backbone), reduction, compute.recompute, device)
    if leaf_layers == "auto":
        leaf_layers = leaf_layers_that_fit(cast(CausalLM, model.backbone), device)
    graphs = compute.cuda_graphs
    if graphs == "auto":
        graphs = "always" if worth_capturing(model, reduction, ds_config, compute.recompute, device) else "never"
    return replace(compute, reduction=reduction, kernels=kernels, leaf_layers=leaf_layers, cuda_graphs=graphs)


def worth_capturing(
    model: HMT, reduction: str, ds_config: DsConfig, recompute: Recompute, device: torch.device
) -> bool:
    """Return whether CUDA graphs can replay a model's forward and backward passes, and make training faster.

    They make it faster where the GPU waits for the host to launch kernels.

    Args:
        model: the model.
        reduction: when gradients are reduced over the ranks: once per ``step`` or after each ``segment``.
        ds_config: DeepSpeed's configuration, every ``auto`` filled in.
        recompute: activation checkpointing of the layers, a value of ``compute.recompute``.
        device: device of this rank.
    """
    backbone = cast(CausalLM, model.backbone)
    # a graph reads the weights at fixed addresses, and adds gradients to buffers at fixed addresses
    fixed_addresses = reduction == "step" and stage_of(ds_config) < 3 and not offloads(ds_config)
    possible = device.type == "cuda" and fixed_addresses and recompute in ("auto", "none", "segment")
    positions = ds_config["train_micro_batch_size_per_gpu"] * model.settings.positions
    possible = possible and not uses_dropout(model) and not is_recurrent(backbone.model) and not is_quantized(backbone)
    return possible and positions * layer_numel(backbone) < LAUNCH_BOUND


def uses_dropout(model: HMT) -> bool:
    """Return whether a model's forward pass in training draws random numbers.

    Some families have dropout without a module for it (OPT has no such module at all), so the configuration counts too.
    """
    config = cast(CausalLM, model.backbone).config
    rates = [getattr(config, name, None) or 0.0 for name in ("attention_dropout", "dropout", "layerdrop")]
    return max(rates + [module.p for module in model.modules() if isinstance(module, nn.Dropout)]) > 0


def best_kernels(backbone: CausalLM, reduction: Reduction, recompute: Recompute, device: torch.device) -> Kernels:
    """Choose the kernels of a model's layers: compiled by torch, Liger's, or plain PyTorch.

    ``compile``, unless ZeRO-3's hooks or activation checkpoints split the layers; else ``liger``, if installed.
    Recurrent layers and CPUs get ``plain``: compiling would unroll a recurrent layer's loop over positions.
    Weights in 4 bits are not compiled: bitsandbytes has its own kernels.

    Args:
        backbone: the backbone.
        reduction: when gradients are reduced over the ranks: once per ``step`` or after each ``segment``.
        recompute: activation checkpointing of the layers, a value of ``compute.recompute``.
        device: device of this rank.
    """
    if device.type == "cpu" or is_recurrent(backbone.model):
        return "plain"
    if reduction == "step" and recompute in ("auto", "none", "segment") and not is_quantized(backbone):
        return "compile"
    return "liger" if liger_knows(backbone.config.model_type) else "plain"


def whole_gradient_fits(model: HMT, ds_config: DsConfig, device: torch.device) -> bool:
    """Return whether a rank can hold the unsharded weights and their fp32 gradient sums, with a quarter of its memory
    left.

    Reducing gradients once per step (``compute.reduction: step``) needs both on every rank.

    Args:
        model: the model, before DeepSpeed wraps it.
        ds_config: DeepSpeed's configuration, every ``auto`` filled in.
        device: device of this rank.
    """
    sizes = [(full_numel(p), p.element_size(), p.requires_grad) for p in model.parameters()]
    stage, trained = stage_of(ds_config), sum(number for number, _, trains in sizes if trains)
    weights = sum(number * size for number, size, _ in sizes)
    shards = world_size() if stage else 1
    # fp32 weights and two moments; DeepSpeed's own gradients do not count, they come when activations are freed
    states = 12 * trained / shards * share_on_gpu(ds_config)
    weight_shards = weights / shards if stage == 3 else 0  # beside the gathered weights
    return weights + 4 * trained + states + weight_shards < FREE_SHARE * capacity(device)


def leaf_layers_that_fit(backbone: CausalLM, device: torch.device) -> int:
    """Return how many layers ZeRO-3 can gather together within a fortieth of a GPU's memory; at least 1.

    ZeRO-3 holds two groups of layers at a time (one computes, the next is prefetched), and their gradients.

    Args:
        backbone: the backbone.
        device: device of this rank.
    """
    if not can_group_layers(backbone.config):
        return 1
    module, name = decoder_layers(backbone)
    size = layer_numel(backbone) * next(backbone.parameters()).element_size()
    return max(1, min(len(getattr(module, name)), int(capacity(device) / 40 / size)))


def layer_numel(backbone: CausalLM) -> int:
    """Return the number of parameters of a backbone's first layer."""
    module, name = decoder_layers(backbone)
    return max(1, sum(full_numel(parameter) for parameter in next(iter(getattr(module, name))).parameters()))


def capacity(device: torch.device) -> float:
    """Return the bytes of memory per rank, GPU or (on CPUs) host memory, as the minimum over all ranks.

    The minimum makes all ranks choose the same settings. All ranks must call it.

    Args:
        device: device of this rank.
    """
    if device.type == "cpu":
        here = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    else:
        here = torch.get_device_module(device).mem_get_info()[1]
    return all_reduce_min([here], device)[0]


def prepare_layers(model: HMT, compute: ComputeSettings, stage: int) -> None:
    """Apply ``compute`` settings to a model's layers, in place, before DeepSpeed wraps the model.

    Args:
        model: the model.
        compute: settings in which every ``auto`` has been replaced.
        stage: the ZeRO stage, 0 to 3.
    """
    backbone = cast(CausalLM, model.backbone)
    if compute.kernels == "liger":
        use_liger(backbone)
    if compute.recompute in ("selective", "segment+layer"):
        checkpoint_layers(backbone, selective=compute.recompute == "selective")
    # With reduction "step" no backward pass goes through DeepSpeed's hooks, and groups would never be reduced.
    if stage == 3 and compute.reduction == "segment":
        group_layers(backbone, int(compute.leaf_layers))
