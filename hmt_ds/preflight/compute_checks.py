"""Settings of the recipe's section ``compute`` that cannot work, with the figures."""

from typing import Any

import psutil
import torch

from hmt_ds.backbones.compute import liger_knows
from hmt_ds.backbones.families import FAMILIES
from hmt_ds.config.recipe import Recipe
from hmt_ds.parallel.deepspeed_config.fill import offloads, stage_of
from hmt_ds.parallel.layer_groups import can_group_layers
from hmt_ds.planning.activations import GIB, kept_bytes


def check_compute(recipe: Recipe, config: Any, ds_config: dict[str, Any]) -> list[str]:
    """What contradicts the backbone, DeepSpeed's file, or this machine; each problem in one line.

    Args:
        config: the backbone's.
        ds_config: filled.
    """
    config = config.get_text_config()
    if not hasattr(config, "num_hidden_layers"):
        return []  # no language model, which others say
    problems = check_recompute(recipe, config) + check_leaves(recipe, config, stage_of(ds_config))
    compute = recipe.compute
    depth = recipe.training.bptt_depth
    if isinstance(compute.summary_batch, int) and compute.summary_batch > depth:
        problems.append(f"compute.summary_batch is {compute.summary_batch}, a window has {depth} (training.bptt_depth)")
    if recipe.model.precision == "fp16" and stage_of(ds_config) in (1, 2) and offloads(ds_config):
        problems.append(
            f"model.precision: not fp16 at ZeRO-{stage_of(ds_config)} with an offloaded optimizer, for DeepSpeed clips "
            "gradients there that are still scaled: take bf16, or ds_configs/zero3_offload.json"
        )
    if compute.cuda_graphs == "always" and (reason := why_not_captured(recipe, config, ds_config)):
        problems.append(f"compute.cuda_graphs is always, but {reason}: take auto")
    if compute.kernels == "liger" and not liger_knows(config.model_type):
        problems.append(
            f"compute.kernels: liger-kernel is not installed or has nothing for {config.model_type}: take auto"
        )
    if compute.kernels == "compile" and compute.recompute in ("selective", "segment+layer"):
        problems.append(
            f"compute.kernels: compiled layers choose what they keep, so compute.recompute {compute.recompute} has no "
            "say: take none or segment, or kernels plain"
        )
    return problems


def check_recompute(recipe: Recipe, config: Any) -> list[str]:
    """A policy under which the activations alone are more than the machine has.

    A pipeline stage has its share of the layers, and runs one micro-batch at a time.
    """
    compute, training, stages = recipe.compute, recipe.training, recipe.pipeline.stages
    size = 4 if recipe.model.precision == "fp32" else 2
    whole = compute.recompute in ("none", "selective")
    rows, depth = training.batch_size, training.bptt_depth
    at_once = rows if whole or stages == 1 else max(1, rows // recipe.micro_batches)
    needed = kept_bytes(config, recipe.memory, compute.recompute, batch=at_once, depth=depth, size=size) // stages
    available, where = memory_of_this_machine()
    if needed <= available:
        return []
    said = f"compute.recompute {compute.recompute}: activations take at least {needed / GIB:,.1f} GiB"
    said += f", {where} has {available / GIB:,.1f}"
    if whole:
        return [f"{said} ({depth} segments of {needed / depth / GIB:,.2f}): take auto, or lower training.bptt_depth"]
    less = "" if compute.recompute == "segment+layer" else "take segment+layer, or "
    more = "" if stages == 1 else ", or raise pipeline.micro_batches"
    return [f"{said} for one segment of {at_once} rows: {less}lower training.batch_size{more}"]


def check_leaves(recipe: Recipe, config: Any, stage: int) -> list[str]:
    """Leaves of more layers than there are, or without ZeRO-3."""
    wanted = recipe.compute.leaf_layers
    if wanted == "auto":
        return []
    if stage != 3:
        return [f"compute.leaf_layers is {wanted}, but only ZeRO-3 gathers layers, not stage {stage}: take auto"]
    if int(wanted) > config.num_hidden_layers:
        return [f"compute.leaf_layers is {wanted} layers, the backbone has {config.num_hidden_layers}"]
    if int(wanted) > 1 and not can_group_layers(config):
        reason = "has layerdrop" if config.model_type in FAMILIES else "is not in the table of families"
        return [f"compute.leaf_layers is {wanted}, but {config.model_type} {reason}, and then it can be 1 only"]
    return []


def why_not_captured(recipe: Recipe, config: Any, ds_config: dict[str, Any]) -> str | None:
    """Why CUDA graphs cannot replay the readings, if they cannot."""
    compute = recipe.compute
    if not torch.cuda.is_available():
        return "there is no GPU here"
    if stage_of(ds_config) == 3 or offloads(ds_config):
        return "at ZeRO-3, and with offloading, weights do not stay where they are"
    if compute.reduction == "segment":
        return "with compute.reduction segment DeepSpeed's hooks run in every pass"
    if compute.recompute in ("selective", "segment+layer"):
        return f"checkpoints (compute.recompute {compute.recompute}) cannot be captured"
    rates = [rate for name, rate in config.to_dict().items() if "drop" in name and isinstance(rate, float)]
    if max([*rates, recipe.model.lora.dropout if recipe.model.train == "lora" else 0.0]) > 0:
        return "the backbone has dropout, and a segment that is read again must draw what it drew"
    return None


def check_pipeline(recipe: Recipe, config: Any, ds_config: dict[str, Any]) -> list[str]:
    """Check a recipe with pipeline stages; return one line per problem."""
    pipeline, model = recipe.pipeline, recipe.model
    if pipeline.stages == 1:
        return []
    config, problems = config.get_text_config(), []
    stage, layers = stage_of(ds_config), getattr(config, "num_hidden_layers", 0)
    if stage != 1:
        problems.append(
            f"pipeline.stages is {pipeline.stages}, with ZeRO-{stage}: stages keep their weights, so only optimizer "
            "states can be shared; take ds_configs/zero1.json"
        )
    if config.model_type not in FAMILIES:
        problems.append(f"pipeline.stages: {config.model_type} cannot be cut into stages, it has no row in the table")
    if pipeline.stages > layers:
        problems.append(f"pipeline.stages is {pipeline.stages}, the backbone has {layers} layers")
    split = pipeline.layers
    if isinstance(split, list) and (len(split) != pipeline.stages or sum(split) != layers):
        problems.append(
            f"pipeline.layers is {split}, {sum(split)} layers in {len(split)} stages: the backbone has {layers}, and "
            f"pipeline.stages is {pipeline.stages}"
        )
    rows = recipe.training.batch_size
    if pipeline.micro_batches != "auto" and rows % pipeline.micro_batches:
        problems.append(
            f"pipeline.micro_batches is {pipeline.micro_batches}: training.batch_size, {rows}, is no multiple"
        )
    if model.train == "frozen":
        problems.append(
            "pipeline.stages: with model.train frozen some stages have nothing to train: take lora or whole"
        )
    if model.precision == "fp16":
        problems.append("pipeline.stages: not with model.precision fp16: take bf16")
    if offloads(ds_config):
        problems.append("pipeline.stages: not with an offloaded optimizer: take ds_configs/zero1.json")
    compute = recipe.compute
    if compute.reduction == "segment":
        problems.append("compute.reduction is segment: stages sum their gradients over a step, take auto")
    if compute.summary_batch != "auto":
        problems.append(
            f"compute.summary_batch is {compute.summary_batch}: stages read one segment's at a time, take auto"
        )
    if compute.spill:
        problems.append("compute.spill: on stages pipeline.live_inputs says what goes to the host, take false")
    return problems


def memory_of_this_machine() -> tuple[int, str]:
    """Bytes for activations, and of what: the smallest GPU, or the host."""
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return min(torch.cuda.get_device_properties(d).total_memory for d in devices), "the GPU"
    return psutil.virtual_memory().total, "this machine"
