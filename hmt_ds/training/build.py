"""What a recipe is made into on a rank: the model in its engine, the windows, and what a checkpoint must agree with."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from hmt_ds.backbones import CausalLM, read_config
from hmt_ds.backbones.stages import LayerRange
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import WindowLoader, document_lengths
from hmt_ds.distributed.deepspeed_internals import full_numel, is_replicated
from hmt_ds.distributed.process_group import add_up, rank, world_size
from hmt_ds.parallel.build_hmt import MEMORY_SEED, build_hmt
from hmt_ds.parallel.deepspeed_config.fill import computes_in_autocast
from hmt_ds.parallel.deepspeed_config.lr_schedule import make_scheduler
from hmt_ds.parallel.pipeline.build_stage import build_stage, stage_spans
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.layer_times import LayerTimes, layer_times
from hmt_ds.parallel.pipeline.schedule import UNIT_COSTS, pipeline_schedule
from hmt_ds.parallel.pipeline.topology import Topology
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.planning.simulate import Machine, simulate
from hmt_ds.preflight.prepare import Prepared

RANKS_APART = 0x9E3779B1  # odd: multiples differ in the lowest 32 bits of a seed, and a CPU's generator takes no others


def build_executor(recipe: Recipe, prepared: Prepared, device: torch.device) -> ZeroExecutor:
    """The recipe's model, or this rank's stage of it, in DeepSpeed's engine on this rank's device."""
    build = build_on_pipeline if recipe.pipeline.stages > 1 else build_on_zero
    executor = build(recipe, prepared, device)
    seed_dropout(executor, recipe.training.seed)
    return executor


def seed_dropout(executor: ZeroExecutor, seed: int) -> None:
    """Let each rank draw numbers of its own. Ranks that drop layers whole, and gather weights together, must drop the
    same ones."""
    layers_drop = getattr(cast(CausalLM, executor.engine.module.backbone).config, "layerdrop", 0.0)
    torch.manual_seed(seed ^ MEMORY_SEED ^ (0 if layers_drop else rank() * RANKS_APART))


def build_on_zero(recipe: Recipe, prepared: Prepared, device: torch.device) -> ZeroExecutor:
    """The whole model, of which every rank has what DeepSpeed gives it."""
    model = recipe.model
    hmt = build_hmt(
        model.source,
        recipe.memory,
        ds_config=prepared.ds_config,
        precision=model.precision,
        train=model.train,
        lora=model.lora,
        seed=recipe.training.seed,
        device=device,
        trust_remote_code=model.trust_remote_code,
    )
    return ZeroExecutor(hmt, **options_of(recipe, prepared, device))


def build_on_pipeline(recipe: Recipe, prepared: Prepared, device: torch.device) -> PipelineExecutor:
    """This rank's stage of the recipe's model.

    Raises:
        ConfigError: if the ranks cannot be divided into pipelines.
    """
    model, pipeline, parts = recipe.model, recipe.pipeline, recipe.micro_batches
    if world_size() % pipeline.stages:
        raise ConfigError([f"pipeline.stages is {pipeline.stages}, which {world_size()} ranks are no multiple of"])
    place = Topology(pipeline.stages, pipeline.timeout_minutes)
    autocast = computes_in_autocast(prepared.ds_config, model.precision)
    config = read_config(model.source, trust_remote_code=model.trust_remote_code)
    dtype = torch.bfloat16 if model.precision == "bf16" and not autocast else torch.float32
    how: dict[str, Any] = {"dtype": dtype, "train": model.train, "lora": model.lora, "device": device}
    split = time_of(recipe, config, **how) if pipeline.layers == "time" else pipeline.layers
    spans = stage_spans(config, pipeline.stages, split)
    if rank() == 0 and isinstance(split, LayerTimes):
        print(divided_by_time(spans, split), flush=True)
    stage = build_stage(
        model.source,
        recipe.memory,
        spans[place.stage],
        seed=recipe.training.seed,
        trust_remote_code=model.trust_remote_code,
        **how,
    )
    if parts < pipeline.stages and rank() == 0:
        print(few_parts(recipe, parts), flush=True)
    return PipelineExecutor(
        stage, place, micro_batches=parts, live_inputs=pipeline.live_inputs, **options_of(recipe, prepared, device)
    )


def time_of(recipe: Recipe, config: Any, **how: Any) -> LayerTimes:
    """What a layer and the head take for a segment of a micro-batch."""
    return layer_times(config, recipe.memory, rows=recipe.training.batch_size // recipe.micro_batches, **how)


def divided_by_time(ranges: list[LayerRange], times: LayerTimes) -> str:
    """A line that says how the layers were divided, and by what."""
    sizes = [layers.end - layers.first for layers in ranges]
    layer, head = (1000 * seconds for seconds in times)
    return f"pipeline.layers by time: {sizes}; a layer takes {layer:.3g} ms, the head {head:.3g} ms"


def few_parts(recipe: Recipe, parts: int) -> str:
    """A warning that stages will wait for each other, and for how long."""
    stages, mode = recipe.pipeline.stages, recipe.memory.mode
    schedule = pipeline_schedule(stages, recipe.training.bptt_depth, parts, mode=mode)
    idle = max(simulate(schedule, Machine.uniform(UNIT_COSTS, stages), mode).bubbles)
    return (
        f"warning: with {parts} micro-batches on {stages} stages a stage waits {idle:.0%} of its time; more keep it "
        f"busy, up to {stages}: raise training.batch_size (now {recipe.training.batch_size}), or lower pipeline.stages"
    )


def options_of(recipe: Recipe, prepared: Prepared, device: torch.device) -> dict[str, Any]:
    """What all executors are told."""
    return {
        "ds_config": prepared.ds_config,
        "precision": recipe.model.precision,
        "device": device,
        "depth": recipe.training.bptt_depth,
        "compute": recipe.compute,
        "memory_lr": recipe.optimizer.memory_lr,
        "scheduler": make_scheduler(recipe.schedule.name, recipe.schedule.params, recipe.training.steps),
    }


def training_loader(
    recipe: Recipe, prepared: Prepared, position: dict[str, Any] | None = None, left_out: Collection[int] = ()
) -> WindowLoader:
    """This rank's rows of the training documents, but for those left out, from a position on."""
    training, pipelines = recipe.training, world_size() // recipe.pipeline.stages
    return WindowLoader(
        prepared.train,
        segments=training.bptt_depth,
        segment_length=recipe.memory.segment_length,
        seed=training.seed,
        rank=rank() % pipelines,
        world_size=pipelines,
        batch_size=training.batch_size,
        num_workers=recipe.data.workers,
        state=position,
        left_out=left_out,
    )


def sizes_of(executor: ZeroExecutor) -> tuple[int, int]:
    """How many parameters the model has, sharded or in stages, and how many of them are trained."""
    own = [p for p in executor.engine.module.parameters() if not is_replicated(p)]
    sizes = torch.tensor([sum(map(full_numel, own)), sum(full_numel(p) for p in own if p.requires_grad)]).double()
    if executor.stages > 1:
        sizes = add_up(sizes.to(executor.device)) / executor.data_ranks
    whole, trained = sizes.long().tolist()
    return whole, trained


def identity(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What a run has in common with its checkpoints, by the recipe's keys."""
    model = recipe.model
    found = {
        "model.source": model.source if isinstance(model.source, dict) else Path(model.source).name,
        "model.train": model.train,
        "model.tokenizer": prepared.tokenizer,
        "training.seed": recipe.training.seed,
        "training.batch_size x ranks": recipe.training.batch_size * (world_size() // recipe.pipeline.stages),
    }
    found |= {
        f"optimizer.{key}": value for key, value in recipe.optimizer.model_dump(include={"name", "params"}).items()
    }
    found |= {f"schedule.{key}": value for key, value in recipe.schedule.model_dump().items()}
    found |= {f"memory.{key}": value for key, value in asdict(recipe.memory).items()}
    if model.train == "lora":
        found |= {f"model.lora.{key}": value for key, value in asdict(model.lora).items()}
    if prepared.train is not None:
        lengths = document_lengths(prepared.train)
        found["data.train"] = f"{len(lengths):,} documents, {int(lengths.sum()):,} tokens"
    return found
