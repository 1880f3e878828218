"""Estimate a recipe: its own layout and the best ones on given GPUs, warnings, and a recipe with the best layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hmt_ds.backbones import BackboneError, read_config
from hmt_ds.backbones.families import FAMILIES
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import find_file
from hmt_ds.config.recipe import Recipe
from hmt_ds.parallel.compute_choice import FREE_SHARE
from hmt_ds.parallel.deepspeed_config.fill import (
    DeepSpeedConfigError,
    offload_ratio,
    offloads,
    read_ds_config,
    section_of,
    stage_of,
)
from hmt_ds.parallel.settings import Recompute, Reduction
from hmt_ds.planning.cluster import Fleet
from hmt_ds.planning.estimate import Estimate, estimate
from hmt_ds.planning.known_models import KNOWN_MODELS, known_model
from hmt_ds.planning.layout import Layout, Work
from hmt_ds.planning.model_size import ModelSize, count
from hmt_ds.planning.search import best_of_each_family

MESSAGES_BOUND, BUBBLE_BOUND, RECOMPUTED = 0.15, 0.15, 0.25  # shares of a step that are worth a warning


@dataclass(frozen=True)
class RecipePlan:
    """Estimates of a recipe on some GPUs: as it is, and with the best layouts.

    Attributes:
        model: name of the backbone.
        size: sizes of the model.
        fleet: type and number of GPUs, nodes and network.
        own: the estimate of the recipe's own layout over the GPUs.
        others: the estimates of the best layout of each kind, the fastest that fits first.
        hours: duration of the whole run as the recipe is, in hours, without evaluations and checkpoints.
        tokens: number of tokens read in the whole run; tokens repeated from the previous segment are not counted.
        warnings: lines about what limits the run.
    """

    model: str
    size: ModelSize
    fleet: Fleet
    own: Estimate
    others: list[Estimate]
    hours: float
    tokens: float
    warnings: list[str]


def plan_recipe(recipe: Recipe, recipe_file: Path, fleet: Fleet) -> RecipePlan:
    """Estimate memory, speed and hours of a recipe on some GPUs, in its own layout and in the best ones.

    Needs neither GPUs nor the model's weights.

    Args:
        recipe: the recipe.
        recipe_file: path of the recipe; files may be named relative to it.
        fleet: type and number of the GPUs, nodes and network.

    Raises:
        ConfigError: the model, DeepSpeed's file or the number of GPUs does not allow an estimate.
    """
    training = recipe.training
    if fleet.count % recipe.pipeline.stages:
        raise ConfigError(
            [
                f"--gpus: {fleet.count} GPUs cannot be split into pipelines of "
                f"{recipe.pipeline.stages} stages: give a multiple"
            ]
        )
    work = work_of(recipe, fleet)
    own = estimate(work, own_layout(recipe, recipe_file, work, fleet), fleet)
    depths = [recipe.depths.of_step(step) for step in range(1, training.steps + 1)]
    share = sum(depths) / len(depths) / work.depth  # of the longest window
    hours = training.steps * share * own.time.seconds / 3600
    source = recipe.model.source
    name = source if isinstance(source, str) else f"a {source.get('model_type')} of random weights"
    others = best_of_each_family(work, fleet)
    tokens = training.steps * share * work.tokens
    return RecipePlan(name, work.size, fleet, own, others, hours, tokens, warnings_of(recipe, own, max(depths)))


def work_of(recipe: Recipe, fleet: Fleet) -> Work:
    """Return what a recipe's run computes in an optimizer step: sizes of the model, segments, and rows over all GPUs.

    Args:
        recipe: the recipe.
        fleet: type and number of GPUs, nodes and network.

    Raises:
        ConfigError: there is no such model.
    """
    model, training = recipe.model, recipe.training
    config = config_of(recipe)
    kind = config.get_text_config().model_type
    return Work(
        size=count(config, recipe.memory, model.train, model.lora),
        settings=recipe.memory,
        depth=recipe.depths.largest,
        rows=training.batch_size * training.gradient_accumulation * (fleet.count // recipe.pipeline.stages),
        number_bytes=4 if model.precision == "fp32" else 2,
        can_pipeline=kind in FAMILIES and model.train != "frozen" and model.precision != "fp16",
        can_shard=kind != "rwkv",
    )


def config_of(recipe: Recipe) -> PreTrainedConfig:
    """Return the transformers configuration of a recipe's model; those of well-known models need no download.

    Args:
        recipe: the recipe.

    Raises:
        ConfigError: there is no such model.
    """
    source, model = recipe.model.source, recipe.model
    if isinstance(source, str) and not Path(source).exists():
        source = KNOWN_MODELS.get(known_model(source) or "", source)
    try:
        return read_config(source, trust_remote_code=model.trust_remote_code)
    except BackboneError as error:
        known = "model.source: name a folder, or a model known without a download: " + ", ".join(KNOWN_MODELS)
        raise ConfigError([*str(error).splitlines(), known]) from None


def own_layout(recipe: Recipe, recipe_file: Path, work: Work, fleet: Fleet) -> Layout:
    """Return the layout that a recipe's settings give, with each ``auto`` resolved as a run on the given GPUs would.

    Args:
        recipe: the recipe.
        recipe_file: path of the recipe.
        work: sizes of the model, and segments and rows of an optimizer step.
        fleet: type and number of GPUs, nodes and network.

    Raises:
        ConfigError: DeepSpeed's file cannot be read or contradicts the recipe.
    """
    file = find_file(recipe.deepspeed, recipe_file)
    try:
        if file is None:
            raise DeepSpeedConfigError(
                f"{recipe.deepspeed}: no such file: name a DeepSpeed configuration, such as ds_configs/zero1.json"
            )
        config = read_ds_config(file)
    except DeepSpeedConfigError as error:
        raise ConfigError([f"deepspeed: {line}" for line in str(error).splitlines()]) from None
    stage, compute, stages = stage_of(config), recipe.compute, recipe.pipeline.stages
    on_host = (offload_ratio(config) if stage == 3 else 1.0) if offloads(config) else 0.0
    weights_on_host = section_of(config, "zero_optimization", "offload_param").get("device", "none") != "none"
    micro_batches = recipe.micro_batches if stages > 1 else 1
    recompute: Recompute = "auto" if compute.recompute == "reentrant" else compute.recompute
    reduction = compute.reduction
    if reduction == "auto":
        reduction = chosen_reduction(work, stage, fleet, on_host) if stages == 1 else "step"
    return Layout(
        stage=stage,
        reduction=reduction,
        rows=max(1, recipe.training.batch_size // micro_batches),
        stages=stages,
        micro_batches=micro_batches,
        recompute=recompute,
        offloaded=on_host,
        offloads_weights=weights_on_host,
        leaf_layers=None if compute.leaf_layers == "auto" else compute.leaf_layers,
        cuda_graphs=compute.cuda_graphs,
    )


def chosen_reduction(work: Work, stage: int, fleet: Fleet, offloaded: float) -> Reduction:
    """Return when a run on some GPUs reduces gradients if the recipe has ``compute.reduction: auto``.

    ``step`` (gradients are summed on each GPU, and reduced once per step) needs unsharded weights and float32 gradient
    sums, which must fit into three quarters of a GPU's memory beside optimizer states and shards.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        stage: ZeRO stage, 0 to 3.
        fleet: type and number of GPUs, nodes and network.
        offloaded: fraction (0 to 1) of the optimizer states that is in host memory.

    Returns:
        ``step``, or ``segment`` (DeepSpeed reduces after every segment) if ``step`` does not fit.
    """
    size, shards = work.size, fleet.count if stage else 1
    states = 12 * size.trained / shards * (1 - offloaded)
    shard = work.number_bytes * size.parameters / shards if stage == 3 else 0
    whole = work.number_bytes * size.parameters + 4 * size.trained
    return "step" if whole + states + shard < FREE_SHARE * fleet.gpu.memory else "segment"


def warnings_of(recipe: Recipe, own: Estimate, deepest: int) -> list[str]:
    """Return a warning line for each thing that limits a run's speed: messages, idle stages, recomputation, unused
    depth.

    Args:
        recipe: the recipe.
        own: the estimate of the recipe as it is.
        deepest: number of segments of the longest truncated-BPTT window that the run reaches.
    """
    parts, seconds, layout = own.time.parts, own.time.seconds, own.layout
    found = []
    if (sent := parts.get("messages", 0.0) / seconds) > MESSAGES_BOUND:
        more = "raise training.batch_size or training.gradient_accumulation, or take pipeline stages within a node"
        found.append(f"bound by communication: messages take {sent:.0%} of a step: {more}")
    if (idle := parts.get("pipeline bubble", 0.0) / seconds) > BUBBLE_BOUND:
        number = f"{layout.micro_batches} micro-batches on {layout.stages} stages"
        found.append(f"too few micro-batches: stages wait {idle:.0%} of a step with {number}: raise batch_size")
    if (again := parts.get("recomputation", 0.0) / seconds) > RECOMPUTED:
        kept = f"{own.memory.kept_segments} of {own.work.depth} segments keep their activations"
        found.append(f"recomputation takes {again:.0%} of a step: {kept}")
    if deepest < own.work.depth:
        reached = f"training.steps {recipe.training.steps} ends at depth {deepest}"
        found.append(f"depth cut short: {reached}, training.bptt_depth goes to {own.work.depth}")
    if (hooks := parts.get("DeepSpeed's hooks", 0.0) / seconds) > MESSAGES_BOUND:
        found.append(f"DeepSpeed's hooks take {hooks:.0%} of a step: raise training.batch_size, which hides them")
    if not own.work.size.attention_width:
        found.append("a model without attention: its speed was never compared with a measurement")
    return found


def changes_for(chosen: Estimate) -> dict[str, Any]:
    """Return the recipe keys (dotted) and values that select a layout; rows per optimizer step stay the same.

    Args:
        chosen: the estimate of the layout.
    """
    layout, gpus = chosen.layout, chosen.fleet.count
    offload = "_offload" if layout.offloaded else ""
    return {
        "deepspeed": f"ds_configs/zero{layout.stage}{offload}.json",
        "training.batch_size": layout.rows * layout.micro_batches,
        "training.gradient_accumulation": layout.windows(chosen.work, gpus),
        "pipeline.stages": layout.stages,
        "pipeline.micro_batches": layout.micro_batches if layout.stages > 1 else "auto",
        "compute.reduction": "auto" if layout.stages > 1 else layout.reduction,
        "compute.recompute": layout.recompute,
    }
