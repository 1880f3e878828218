"""Checks of a recipe with pipeline stages against the backbone and DeepSpeed's file."""

from typing import Any

from transformers import PreTrainedConfig

from hmt_ds.backbones.families import FAMILIES
from hmt_ds.config.recipe import Recipe
from hmt_ds.parallel.deepspeed_config.fill import offloads, stage_of


def check_pipeline(recipe: Recipe, config: PreTrainedConfig, ds_config: dict[str, Any]) -> list[str]:
    """Return an error line for each problem of a recipe with pipeline stages; an empty list if there is none.

    Args:
        recipe: the recipe.
        config: configuration of the backbone.
        ds_config: DeepSpeed's configuration, with all values filled in.
    """
    if recipe.pipeline.stages == 1:
        return []
    return [
        *check_zero_stage(recipe, stage_of(ds_config)),
        *check_stages(recipe, config.get_text_config()),
        *check_settings(recipe, offloaded=offloads(ds_config)),
    ]


def check_zero_stage(recipe: Recipe, stage: int) -> list[str]:
    """Return an error line if a pipeline runs with another ZeRO stage than 1; else an empty list.

    Args:
        recipe: the recipe.
        stage: ZeRO stage, 0 to 3.
    """
    if stage == 1:
        return []
    return [
        f"pipeline.stages is {recipe.pipeline.stages}, with ZeRO-{stage}: stages keep their weights, so only optimizer "
        "states can be sharded; take ds_configs/zero1.json"
    ]


def check_stages(recipe: Recipe, config: PreTrainedConfig) -> list[str]:
    """Check that the backbone's layers can be divided among the pipeline stages, and the rows among the micro-batches.

    Args:
        recipe: the recipe, with ``pipeline.stages`` above 1.
        config: configuration of the backbone.

    Returns:
        An error line for each problem.
    """
    pipeline, problems = recipe.pipeline, []
    layers = getattr(config, "num_hidden_layers", 0)
    if config.model_type not in FAMILIES:
        problems.append(
            f"pipeline.stages is {pipeline.stages}, but {config.model_type} cannot be cut into stages "
            "(backbones/families.py does not list it): take 1"
        )
    if pipeline.stages > layers:
        problems.append(
            f"pipeline.stages is {pipeline.stages}, the backbone has {layers} layers: take at most as many stages"
        )
    split = pipeline.layers
    if isinstance(split, list) and (len(split) != pipeline.stages or sum(split) != layers):
        problems.append(
            f"pipeline.layers is {split}, {sum(split)} layers in {len(split)} stages: the backbone has {layers}, and "
            f"pipeline.stages is {pipeline.stages}: give as many numbers as stages, with that sum"
        )
    rows = recipe.training.batch_size
    if pipeline.micro_batches != "auto" and rows % pipeline.micro_batches:
        problems.append(
            f"pipeline.micro_batches is {pipeline.micro_batches}: training.batch_size, {rows}, is not a multiple of "
            "it: change one of them"
        )
    return problems


def check_settings(recipe: Recipe, *, offloaded: bool) -> list[str]:
    """Return an error line for each setting of a recipe that pipelines do not support.

    Args:
        recipe: the recipe.
        offloaded: whether the optimizer is offloaded to the host.
    """
    model, compute = recipe.model, recipe.compute
    checks = [
        (
            model.train == "frozen",
            "pipeline.stages: with model.train frozen some stages have nothing to train: take lora or whole",
        ),
        (model.precision == "fp16", "pipeline.stages: not with model.precision fp16: take bf16"),
        (offloaded, "pipeline.stages: not with an offloaded optimizer: take ds_configs/zero1.json"),
        (
            compute.reduction == "segment",
            "compute.reduction is segment: stages reduce gradients once per step, take auto",
        ),
        (
            compute.summary_batch != "auto",
            f"compute.summary_batch is {compute.summary_batch}: stages compute one summary at a time, take auto",
        ),
        (
            compute.spill,
            "compute.spill is true, but with stages pipeline.live_inputs says what is offloaded: take false",
        ),
    ]
    return [problem for found, problem in checks if found]
