"""Describe what a checked recipe would train, without starting it: ``hmt-ds check``, ``hmt-ds train --dry-run``."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import describe_tokens
from hmt_ds.parallel.deepspeed_config.fill import offloads, stage_of
from hmt_ds.planning.activations import GIB
from hmt_ds.planning.cluster import Fleet, fleet_of, gpu_named
from hmt_ds.planning.recipe_plan import plan_recipe
from hmt_ds.preflight.data_figures import data_figures
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.reporting.data_table import data_lines

LINK = 50e9  # between nodes; the machine's own GPUs do not need it


def dry_run_lines(
    recipe: Recipe, recipe_file: Path, prepared: Prepared, ranks: int | None, overrides: Sequence[str] = ()
) -> list[str]:
    """Return lines about a checked recipe: data, DeepSpeed, an estimate for this machine's GPUs, warnings, the next
    command.

    Args:
        recipe: the recipe.
        recipe_file: path of the recipe.
        prepared: the result of the recipe's checks, with tokenized documents.
        ranks: number of ranks; None for one on each GPU.
        overrides: changed keys of the recipe, which the next command repeats.
    """
    training, command = recipe.training, shlex.join([str(recipe_file), *overrides])
    lines = [f"recipe       {recipe_file}: no problem found; nothing was started"]
    if prepared.sources:
        pipelines = max(1, (ranks or torch.cuda.device_count() or 1) // recipe.pipeline.stages)
        lines += data_lines(data_figures(recipe, prepared.sources, pipelines))
    if prepared.validation is not None:
        lines.append(f"held out     {describe_tokens(prepared.validation, recipe.memory.segment_length)}")
    if prepared.retrieval is not None:
        lines.append("data         generated documents (data.retrieval)")
    host = ", optimizer on the host" if offloads(prepared.ds_config) else ""
    lines.append(f"deepspeed    {recipe.deepspeed}: ZeRO-{stage_of(prepared.ds_config)}{host}")
    depth = recipe.depths.largest
    lines.append(f"training     {training.steps:,} steps of {training.batch_size} rows x {depth} segments per rank")
    lines += [f"warning      {warning}" for warning in prepared.warnings]
    lines += plan_here(recipe, recipe_file, ranks, command)
    return [*lines, f"next         hmt-ds train {command}" + (f" --ranks {ranks}" if ranks else "")]


def plan_here(recipe: Recipe, recipe_file: Path, ranks: int | None, command: str) -> list[str]:
    """Return lines with a recipe's estimated memory (GiB per GPU), tokens/s and hours on this machine's GPUs.

    Args:
        recipe: the recipe.
        recipe_file: path of the recipe.
        ranks: number of ranks; None for one on each GPU.
        command: recipe and changed keys as words of a command line.
    """
    fleet = fleet_here(ranks)
    if fleet is None:
        return [f"plan         no known GPU here: hmt-ds plan {command} --gpus 8xH100-80GB"]
    with suppress(ConfigError):  # such as model.source that is a run, whose sizes the planner does not read
        found = plan_recipe(recipe, recipe_file, fleet)
        own, speed = found.own.memory, found.own.tokens_per_second
        size = f"{own.peak / GIB:,.0f} of {own.most / GIB:,.0f} GiB"
        fits = "" if own.peak <= own.most else ", which does not fit"
        line = f"plan         on {fleet}: {size}{fits}, {speed:,.0f} tokens/s per GPU, {found.hours:,.1f} hours"
        return [line, *(f"warning      {warning}" for warning in found.warnings)]
    return []


def fleet_here(ranks: int | None) -> Fleet | None:
    """Return the type and number of this machine's GPUs that a run would use; None without GPUs whose type is known.

    Args:
        ranks: number of ranks of the run; None for one on each GPU.
    """
    count = torch.cuda.device_count()
    if not count:
        return None
    device = torch.cuda.get_device_properties(0)
    gpu = gpu_named(device.name)
    if gpu is None:
        return None
    return fleet_of(ranks or count, replace(gpu, gib=device.total_memory / 0.99 / GIB), 1, LINK)
