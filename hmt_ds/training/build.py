"""Build a run's parts from its recipe: the model in its engine, the data loader."""

import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import PretrainedConfig

from hmt_ds.backbones import CausalLM, read_config
from hmt_ds.backbones.stages import LayerRange
from hmt_ds.checkpoint import RunPosition
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import Batch, Packing, RetrievalDocuments, RetrievalLoader, SourceShare, WindowLoader
from hmt_ds.data.stream_batches import StreamLoader
from hmt_ds.distributed.deepspeed_internals import full_numel, is_replicated
from hmt_ds.distributed.process_group import all_reduce_sum, rank, world_size
from hmt_ds.memory import HMT
from hmt_ds.parallel.build_engine import ExecutorOptions
from hmt_ds.parallel.build_hmt import MEMORY_SEED, build_hmt
from hmt_ds.parallel.deepspeed_config.fill import computes_in_autocast
from hmt_ds.parallel.deepspeed_config.lr_schedule import make_scheduler
from hmt_ds.parallel.pipeline.build_stage import build_stage, stage_layers
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.layer_times import LayerTimes, layer_times
from hmt_ds.parallel.pipeline.reader import PipelineReader
from hmt_ds.parallel.pipeline.schedule import UNIT_COSTS, pipeline_schedule
from hmt_ds.parallel.pipeline.topology import Topology
from hmt_ds.parallel.protocols import Executor, Reader
from hmt_ds.parallel.reader import ZeroReader
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.planning.simulate import Machine, simulate
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.preflight.source_tokens import stream_of, tokenizer_of

logger = logging.getLogger(__name__)

START = RunPosition()
RANK_STRIDE = 0x9E3779B1  # odd, so that multiples differ in the lowest 32 bits: a CPU's generator takes no others


def build_executor(recipe: Recipe, prepared: Prepared, device: torch.device) -> Executor:
    """Build a recipe's model, or this rank's pipeline stage of it, in a DeepSpeed engine that trains.

    Args:
        recipe: the checked recipe.
        prepared: results of the preflight checks, with DeepSpeed's configuration.
        device: device of this rank.
    """
    options = executor_options(recipe, prepared, device)
    executor: Executor
    if recipe.pipeline.stages > 1:
        stage, topology = build_pipeline_stage(recipe, prepared, device)
        live_inputs = recipe.pipeline.live_inputs
        executor = PipelineExecutor(
            stage, topology, options, micro_batches=recipe.micro_batches, live_inputs=live_inputs
        )
    else:
        executor = ZeroExecutor(build_whole_model(recipe, prepared, device), options)
    seed_dropout(executor, recipe.training.seed)
    return executor


def build_reader(recipe: Recipe, prepared: Prepared, device: torch.device) -> Reader:
    """Build a recipe's model, or this rank's pipeline stage of it, in a DeepSpeed engine that only evaluates.

    Args:
        recipe: the checked recipe.
        prepared: results of the preflight checks, with DeepSpeed's configuration.
        device: device of this rank.
    """
    options = executor_options(recipe, prepared, device)
    if recipe.pipeline.stages > 1:
        stage, topology = build_pipeline_stage(recipe, prepared, device)
        return PipelineReader(stage, topology, options, micro_batches=recipe.micro_batches)
    return ZeroReader(build_whole_model(recipe, prepared, device), options)


def seed_dropout(executor: Executor, seed: int) -> None:
    """Seed this rank's random generator, so that ranks draw different dropout masks.

    With layerdrop all ranks draw the same numbers: a layer that one rank skips and another one runs would leave the
    second waiting for the first in ZeRO-3's all-gather.

    Args:
        executor: the model in its engine.
        seed: seed of the run.
    """
    has_layerdrop = getattr(cast(CausalLM, executor.engine.module.backbone).config, "layerdrop", 0.0)
    torch.manual_seed(seed ^ MEMORY_SEED ^ (0 if has_layerdrop else rank() * RANK_STRIDE))


def build_whole_model(recipe: Recipe, prepared: Prepared, device: torch.device) -> HMT:
    """Build the whole HMT model of a recipe on this rank; at ZeRO-3 each rank keeps only its shard of the weights.

    Args:
        recipe: the checked recipe.
        prepared: results of the preflight checks, with DeepSpeed's configuration.
        device: device of this rank.
    """
    model = recipe.model
    return build_hmt(
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


def build_pipeline_stage(recipe: Recipe, prepared: Prepared, device: torch.device) -> tuple[HMT, Topology]:
    """Build this rank's pipeline stage of a recipe's model. All ranks must call it together.

    Args:
        recipe: the checked recipe, with ``pipeline.stages`` above 1.
        prepared: results of the preflight checks, with DeepSpeed's configuration.
        device: device of this rank.

    Returns:
        The stage, and this rank's place among the stages and pipelines.

    Raises:
        ConfigError: the number of ranks is not a multiple of the number of stages.
    """
    model, pipeline = recipe.model, recipe.pipeline
    if world_size() % pipeline.stages:
        raise ConfigError(
            [f"pipeline.stages is {pipeline.stages}: start a multiple of that number of ranks, not {world_size()}"]
        )
    topology = Topology(pipeline.stages, pipeline.timeout_minutes)
    autocast = computes_in_autocast(prepared.ds_config, model.precision)
    config = read_config(model.source, trust_remote_code=model.trust_remote_code)
    dtype = torch.bfloat16 if model.precision == "bf16" and not autocast else torch.float32
    options: dict[str, Any] = {"dtype": dtype, "train": model.train, "lora": model.lora, "device": device}
    split = measure_layers(recipe, config, **options) if pipeline.layers == "time" else pipeline.layers
    ranges = stage_layers(config, pipeline.stages, split)
    if isinstance(split, LayerTimes):
        logger.info(describe_split(ranges, split))
    if recipe.micro_batches < pipeline.stages and rank() == 0:
        logger.warning(describe_bubble(recipe, recipe.micro_batches))
    stage = build_stage(
        model.source,
        recipe.memory,
        ranges[topology.stage],
        seed=recipe.training.seed,
        trust_remote_code=model.trust_remote_code,
        **options,
    )
    return stage, topology


def measure_layers(recipe: Recipe, config: PretrainedConfig, **options: Any) -> LayerTimes:
    """Measure the seconds of a decoder layer and of the output head for one segment, to balance pipeline stages.

    Args:
        recipe: the checked recipe.
        config: configuration of the backbone.
        options: further arguments of :func:`layer_times`, such as the device.
    """
    return layer_times(config, recipe.memory, rows=recipe.training.batch_size // recipe.micro_batches, **options)


def describe_split(ranges: list[LayerRange], times: LayerTimes) -> str:
    """Describe the layers of each pipeline stage for the log.

    Args:
        ranges: indices of the layers of each stage.
        times: measured seconds of a layer and of the head, by which the stages are balanced.
    """
    sizes = [layers.end - layers.first for layers in ranges]
    layer, head = (1000 * seconds for seconds in times)
    return f"pipeline.layers by time: {sizes}; a layer takes {layer:.3g} ms, the head {head:.3g} ms"


def describe_bubble(recipe: Recipe, micro_batches: int) -> str:
    """Describe for the log how long pipeline stages are idle if there are fewer micro-batches than stages, and what to
    change.

    Args:
        recipe: the recipe.
        micro_batches: number of micro-batches that the rows are split into, less than the stages.
    """
    stages, mode = recipe.pipeline.stages, recipe.memory.mode
    schedule = pipeline_schedule(stages, recipe.depths.largest, micro_batches, mode=mode)
    bubble = max(simulate(schedule, Machine.uniform(UNIT_COSTS, stages), mode).bubbles)
    return (
        f"with {micro_batches} micro-batches on {stages} stages a stage waits {bubble:.0%} of its time; more keep it "
        f"busy, up to {stages}: raise training.batch_size (now {recipe.training.batch_size}), or lower pipeline.stages"
    )


def executor_options(recipe: Recipe, prepared: Prepared, device: torch.device) -> ExecutorOptions:
    """Return the settings of a DeepSpeed engine from a recipe: configuration, precision, learning rate schedule,
    device.

    Args:
        recipe: the checked recipe.
        prepared: results of the preflight checks, with DeepSpeed's configuration.
        device: device of this rank.
    """
    return ExecutorOptions(
        ds_config=prepared.ds_config,
        precision=recipe.model.precision,
        device=device,
        depth=recipe.depths.of_stage(1),
        compute=replace(recipe.compute, cuda_graphs="never") if recipe.data.pack else recipe.compute,
        memory_lr=recipe.optimizer.memory_lr,
        scheduler=make_scheduler(recipe.schedule.name, recipe.schedule.params, recipe.training.steps),
    )


def training_loader(
    recipe: Recipe, prepared: Prepared, after: RunPosition = START, excluded: Collection[int] = ()
) -> Iterable[Batch]:
    """Return an iterable over this rank's batches of training documents, ``[rows, segments, segment_length]`` tokens
    each.

    Args:
        recipe: the recipe.
        prepared: results of the preflight checks, with the tokenized documents.
        after: step and position in the data after which to continue.
        excluded: indices of documents to leave out.
    """
    training, length, pipelines = recipe.training, recipe.memory.segment_length, world_size() // recipe.pipeline.stages
    depths, windows_per_step = recipe.depths, training.gradient_accumulation
    options: dict[str, Any] = {
        "segments": lambda window: depths.of_step(after.step + 1 + window // windows_per_step),
        "rank": rank() % pipelines,
        "world_size": pipelines,
        "batch_size": training.batch_size,
        "num_workers": recipe.data.workers,
        "state": after.position,
    }
    which: dict[str, Any] = {"segment_length": length, "seed": training.seed, "left_out": excluded}
    if settings := recipe.data.retrieval:
        assert prepared.retrieval is not None
        return RetrievalLoader(RetrievalDocuments(prepared.retrieval, settings, **which), **options)
    packing = Packing.of(recipe.memory) if recipe.data.pack else None
    if recipe.data.stream:
        makes = os.environ.get("LOCAL_RANK", "0") == "0"
        return StreamLoader(stream_of(recipe, tokenizer_of(recipe), makes=makes), packing=packing, **which, **options)
    sources = [SourceShare(one.documents, one.source.weight) for one in prepared.sources]
    which |= {"sources": sources, "mix_by": recipe.data.mix_by}
    return WindowLoader(prepared.train, packing=packing, **which, **options)


def count_parameters(executor: Executor) -> tuple[int, int]:
    """Return the number of parameters of the whole model, and how many of them are trained.

    With pipeline stages all ranks must call it together.

    Args:
        executor: the model in its engine, which may hold only a shard or a stage of it.
    """
    own = [p for p in executor.engine.module.parameters() if not is_replicated(p)]
    sizes = torch.tensor([sum(map(full_numel, own)), sum(full_numel(p) for p in own if p.requires_grad)]).double()
    if executor.stages > 1:
        sizes = all_reduce_sum(sizes.to(executor.device)) / executor.data_ranks
    whole, trained = sizes.long().tolist()
    return whole, trained
