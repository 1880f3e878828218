"""Checks of the recipe's section ``compute`` against the backbone, DeepSpeed's file and this machine."""

from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from hmt_ds.backbones.compute import liger_knows
from hmt_ds.backbones.families import FAMILIES
from hmt_ds.config.recipe import Recipe
from hmt_ds.parallel.deepspeed_config.fill import offloads, stage_of
from hmt_ds.parallel.layer_groups import can_group_layers
from hmt_ds.planning.activations import GIB, kept_bytes


def check_compute(recipe: Recipe, config: PreTrainedConfig, ds_config: dict[str, Any]) -> list[str]:
    """Return an error line for each value of the recipe's section ``compute`` that cannot work; an empty list if none.

    Args:
        recipe: the recipe.
        config: configuration of the backbone.
        ds_config: DeepSpeed's configuration, with all values filled in.
    """
    config = config.get_text_config()
    if not hasattr(config, "num_hidden_layers"):
        return []  # not a language model, which check_backbone reports
    problems = check_stage(config, stage_of(ds_config)) + check_recompute(recipe, config)
    problems += check_vocabulary(recipe, config)
    problems += check_leaf_layers(recipe, config, stage_of(ds_config))
    compute, depth = recipe.compute, recipe.depths.largest
    if isinstance(compute.summary_batch, int) and compute.summary_batch > depth:
        problems.append(
            f"compute.summary_batch is {compute.summary_batch}, a window has {depth} segments (training.bptt_depth): "
            f"take at most {depth}"
        )
    if recipe.model.precision == "fp16" and stage_of(ds_config) in (1, 2) and offloads(ds_config):
        problems.append(
            f"model.precision: not fp16 at ZeRO-{stage_of(ds_config)} with an offloaded optimizer, because DeepSpeed "
            "clips its gradients before they are unscaled: take bf16, or ds_configs/zero3_offload.json"
        )
    if compute.cuda_graphs == "always" and (reason := why_no_cuda_graphs(recipe, config, ds_config)):
        problems.append(f"compute.cuda_graphs is always, but {reason}: take auto")
    if compute.kernels == "liger" and not liger_knows(config.model_type):
        problems.append(
            f"compute.kernels: liger-kernel is not installed or does not support {config.model_type}: take auto"
        )
    if compute.kernels == "compile" and recipe.model.lora.quantize != "none":
        problems.append(
            "compute.kernels is compile, but 4-bit weights (model.lora.quantize) are not compiled: take auto"
        )
    if compute.kernels == "compile" and compute.recompute in ("selective", "segment+layer"):
        problems.append(
            "compute.kernels: compiled layers choose themselves what they keep, so compute.recompute "
            f"{compute.recompute} has no effect: take recompute none or segment, or kernels plain"
        )
    return problems


def check_stage(config: PreTrainedConfig, stage: int) -> list[str]:
    """Return an error line if the backbone is RWKV and the ZeRO stage is 3; else an empty list.

    RWKV's initialization reads shapes of weights, which sharded weights do not have.

    Args:
        config: configuration of the backbone.
        stage: ZeRO stage, 0 to 3.
    """
    if stage != 3 or config.model_type != "rwkv":
        return []
    return ["deepspeed: transformers cannot load rwkv with weights sharded at ZeRO-3: take ds_configs/zero2.json"]


def check_recompute(recipe: Recipe, config: PreTrainedConfig) -> list[str]:
    """Check that the activations alone, under ``compute.recompute``, fit into the memory of the GPU or the host.

    A pipeline stage has its share of the layers. It runs one micro-batch at a time, but keeps the activations of all
    rows where nothing is recomputed.

    Args:
        recipe: the recipe.
        config: configuration of the backbone.

    Returns:
        An error line for each problem.
    """
    compute, training, stages = recipe.compute, recipe.training, recipe.pipeline.stages
    size = 4 if recipe.model.precision == "fp32" else 2
    keeps_window = compute.recompute in ("none", "selective")
    depth, rows = recipe.depths.largest, training.batch_size
    if stages > 1 and not keeps_window:
        rows = max(1, rows // recipe.micro_batches)
    needed = kept_bytes(config, recipe.memory, compute.recompute, batch=rows, depth=depth, size=size) // stages
    available, owner = memory_of_this_machine()
    if needed <= available:
        return []
    fact = f"compute.recompute {compute.recompute}: activations take at least {needed / GIB:,.1f} GiB"
    fact += f", {owner} has {available / GIB:,.1f}"
    if keeps_window:
        return [f"{fact} ({depth} segments of {needed / depth / GIB:,.2f}): take auto, or lower training.bptt_depth"]
    by_layer = "" if compute.recompute == "segment+layer" else "take segment+layer, or "
    more_parts = "" if stages == 1 else ", or raise pipeline.micro_batches"
    return [f"{fact} for one segment of {rows} rows: {by_layer}lower training.batch_size{more_parts}"]


def check_vocabulary(recipe: Recipe, config: PreTrainedConfig) -> list[str]:
    """Check that the token embeddings, which are never split, fit into the memory of the GPU or the host.

    Args:
        recipe: the recipe.
        config: configuration of the backbone.

    Returns:
        An error line if they do not fit; else an empty list.
    """
    size = 4 if recipe.model.precision == "fp32" else 2
    needed, (available, owner) = config.vocab_size * config.hidden_size * size, memory_of_this_machine()
    if needed <= available:
        return []
    return [
        f"model: embeddings of {config.vocab_size:,} tokens take {needed / GIB:,.1f} GiB, {owner} has "
        f"{available / GIB:,.1f}: check vocab_size"
    ]


def check_leaf_layers(recipe: Recipe, config: PreTrainedConfig, stage: int) -> list[str]:
    """Check ``compute.leaf_layers``, the number of layers that ZeRO-3 gathers together.

    Args:
        recipe: the recipe.
        config: configuration of the backbone.
        stage: ZeRO stage, 0 to 3.

    Returns:
        An error line for each problem.
    """
    wanted = recipe.compute.leaf_layers
    if wanted == "auto":
        return []
    if stage != 3:
        return [f"compute.leaf_layers is {wanted}, but only ZeRO-3 gathers layers, not stage {stage}: take auto"]
    if wanted > config.num_hidden_layers:
        return [f"compute.leaf_layers is {wanted} layers, the backbone has {config.num_hidden_layers}: take fewer"]
    if wanted > 1 and not can_group_layers(config):
        reason = "has layerdrop" if config.model_type in FAMILIES else "is not listed in backbones/families.py"
        return [f"compute.leaf_layers is {wanted}, but {config.model_type} {reason}: take 1 or auto"]
    return []


def why_no_cuda_graphs(recipe: Recipe, config: PreTrainedConfig, ds_config: dict[str, Any]) -> str | None:
    """Return why forward and backward passes cannot be replayed as CUDA graphs; None if they can.

    Args:
        recipe: the recipe.
        config: configuration of the backbone.
        ds_config: DeepSpeed's configuration, with all values filled in.
    """
    compute = recipe.compute
    if recipe.data.pack:
        return "with data.pack each segment has an attention mask of its own"
    if not torch.cuda.is_available():
        return "there is no GPU here"
    if recipe.model.lora.quantize != "none":
        return "kernels of 4-bit weights (model.lora.quantize) are not captured"
    if stage_of(ds_config) == 3 or offloads(ds_config):
        return "at ZeRO-3, and with offloading, the addresses of weights change"
    if compute.reduction == "segment":
        return "with compute.reduction segment DeepSpeed's hooks run in every pass"
    if compute.recompute in ("selective", "segment+layer"):
        return f"activation checkpointing within a segment (compute.recompute {compute.recompute}) cannot be captured"
    rates = [rate for name, rate in config.to_dict().items() if "drop" in name and isinstance(rate, float)]
    if max([*rates, recipe.model.lora.dropout if recipe.model.train == "lora" else 0.0]) > 0:
        return "the backbone has dropout, and a recomputed segment must draw the same random numbers again"
    return None


def memory_of_this_machine() -> tuple[int, str]:
    """Return the memory that activations can have on this machine.

    Returns:
        Bytes of the smallest GPU's memory, or without GPUs of the host's; and a text that says which, for messages.
    """
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return min(torch.cuda.get_device_properties(d).total_memory for d in devices), "the GPU"
    return psutil.virtual_memory().total, "this machine"
