"""What is traded for what when a step is computed: settled from the recipe, the model and the device."""

import os
from dataclasses import replace
from typing import Any, cast

import psutil
import torch
from torch import nn

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import checkpoint_layers, decoder_layers, liger_knows, use_liger
from hmt_ds.distributed.deepspeed_internals import full_numel
from hmt_ds.distributed.process_group import smallest, world_size
from hmt_ds.memory import HMT
from hmt_ds.parallel.deepspeed_config.fill import offloads, share_on_gpu, stage_of
from hmt_ds.parallel.layer_groups import can_run_together, group_layers
from hmt_ds.parallel.settings import ComputeSettings, Kernels, Recompute, Reduction

# positions x parameters of a layer, below which its kernels are done before the next are launched (a tenth of a
# millisecond to one, measured on an H100)
LAUNCH_BOUND = 2.5e11


def resolve(compute: ComputeSettings, model: HMT, ds_config: dict[str, Any], device: torch.device) -> ComputeSettings:
    """The same with every "auto" settled that does not have to be measured."""
    reduction, kernels, leaf_layers = compute.reduction, compute.kernels, compute.leaf_layers
    if reduction == "auto":
        reduction = "step" if whole_gradient_fits(model, ds_config, device) else "segment"
    if kernels == "auto":
        kernels = best_kernels(cast(CausalLM, model.backbone), reduction, compute.recompute, device)
    if leaf_layers == "auto":
        leaf_layers = leaf_that_fits(cast(CausalLM, model.backbone), device)
    graphs = compute.cuda_graphs
    if graphs == "auto":
        graphs = "always" if worth_capturing(model, reduction, ds_config, compute.recompute, device) else "never"
    return replace(compute, reduction=reduction, kernels=kernels, leaf_layers=leaf_layers, cuda_graphs=graphs)


def worth_capturing(
    model: HMT, reduction: str, ds_config: dict[str, Any], recompute: str, device: torch.device
) -> bool:
    """Whether CUDA graphs can replay the readings, and launches take longer than arithmetic."""
    backbone = cast(CausalLM, model.backbone)
    stays = reduction == "step" and stage_of(ds_config) < 3 and not offloads(ds_config)
    possible = device.type == "cuda" and stays and not draws(model) and recompute in ("auto", "none", "segment")
    positions = ds_config["train_micro_batch_size_per_gpu"] * model.settings.positions
    return possible and positions * layer_size(backbone) < LAUNCH_BOUND


def draws(model: HMT) -> bool:
    """Whether a reading draws random numbers: modules of dropout, or what families do without one (OPT all of it)."""
    config = cast(CausalLM, model.backbone).config
    rates = [getattr(config, name, None) or 0.0 for name in ("attention_dropout", "dropout", "layerdrop")]
    return max(rates + [module.p for module in model.modules() if isinstance(module, nn.Dropout)]) > 0


def best_kernels(backbone: CausalLM, reduction: Reduction, recompute: Recompute, device: torch.device) -> Kernels:
    """Compiled layers where no hook of ZeRO-3 and no checkpoint is in them; else liger's, if it knows the family."""
    if device.type == "cpu":
        return "plain"
    if reduction == "step" and recompute in ("auto", "none", "segment"):
        return "compile"
    return "liger" if liger_knows(backbone.config.model_type) else "plain"


def whole_gradient_fits(model: HMT, ds_config: dict[str, Any], device: torch.device) -> bool:
    """Whether a rank can hold all weights and the float32 sum of all gradients, with a quarter left for activations."""
    sizes = [(full_numel(p), p.element_size(), p.requires_grad) for p in model.parameters()]
    stage, trained = stage_of(ds_config), sum(number for number, _, trains in sizes if trains)
    whole = sum(number * size for number, size, _ in sizes) + 4 * trained
    shards = world_size() if stage else 1
    # DeepSpeed's weights and two moments in float32; its gradients come when activations are gone
    states = 12 * trained / shards * share_on_gpu(ds_config)
    weights_of_stage_3 = sum(number * size for number, size, _ in sizes) / shards if stage == 3 else 0
    return whole + states + weights_of_stage_3 < 0.75 * capacity(device)


def leaf_that_fits(backbone: CausalLM, device: torch.device) -> int:
    """As many layers as take a fortieth of the memory: two such leaves stand at a time, and their gradients."""
    if not can_run_together(backbone.config):
        return 1
    module, name = decoder_layers(backbone)
    size = layer_size(backbone) * next(backbone.parameters()).element_size()
    return max(1, min(len(getattr(module, name)), int(capacity(device) / 40 / size)))


def layer_size(backbone: CausalLM) -> int:
    """Parameters of the first layer."""
    module, name = decoder_layers(backbone)
    return max(1, sum(full_numel(parameter) for parameter in next(iter(getattr(module, name))).parameters()))


def capacity(device: torch.device) -> float:
    """Bytes of memory for a rank, on the one that has least: all ranks must settle for the same."""
    if device.type == "cpu":
        here = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    else:
        here = torch.get_device_module(device).mem_get_info()[1]
    return smallest([here], device)[0]


def prepare_layers(model: HMT, compute: ComputeSettings, stage: int) -> None:
    """Change the model's layers as settled, in place, before DeepSpeed takes it."""
    backbone = cast(CausalLM, model.backbone)
    if compute.kernels == "liger":
        use_liger(backbone)
    if compute.recompute in ("selective", "segment+layer"):
        checkpoint_layers(backbone, selective=compute.recompute == "selective")
    if stage == 3 and compute.reduction == "segment":
        # (DeepSpeed reduces a leaf's gradients when the leaf was read backward, which with reduction step it is not)
        group_layers(backbone, int(compute.leaf_layers))
