"""Run some steps of a recipe on all ranks and report their speed and memory."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from rich.console import Console

from hmt_ds.backbones import read_config
from hmt_ds.benchmark.bench_options import BenchOptions, parse_words
from hmt_ds.benchmark.measure import CLOCKED_STEPS, Bench, arithmetic, random_windows, speeds
from hmt_ds.benchmark.pipeline_phases import pipeline_results
from hmt_ds.benchmark.reference import Work, reference_problems, run_reference
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.process_group import rank, world_size
from hmt_ds.memory import Window
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.planning.flops import matrix_rate, peak_flops
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.reporting.bench_tables import bench_tables, reference_tables
from hmt_ds.training.build import build_executor, count_parameters, training_loader
from hmt_ds.training.rank import peak_resident_bytes, prepare_together
from hmt_ds.training.validation import as_window

logger = logging.getLogger(__name__)


def bench(recipe_file: str, words: list[str], device: torch.device) -> None:
    """Run some steps of a recipe; print what they took, and write it if that was asked for."""
    options, overrides, problems = parse_words(words)
    if problems:
        raise ConfigError(problems)
    recipe = load_recipe(recipe_file, overrides)
    prepared = prepare_together(recipe, recipe_file, new_run=False, with_data=options.tokens == "data")
    check_reference(recipe, options, world_size())
    reference = beside(recipe, options, device)
    result = measure(recipe, prepared, options, device) | reference
    publish([*bench_tables(result), *(reference_tables(result) if reference else [])], result, options)


def publish(tables: Iterable[Any], result: dict[str, Any], options: BenchOptions) -> None:
    """Print it and write it, on rank 0."""
    if rank() == 0:
        console = Console()
        for table in tables:
            console.print(table)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=1))
            print(f"numbers     {options.json}", flush=True)


def check_reference(recipe: Recipe, options: BenchOptions, ranks: int) -> None:
    """See whether HMT-pytorch can be run beside, if that is wanted. The recipe has been found in order.

    Raises:
        ConfigError: with all that stands against it.
    """
    if options.reference is None:
        return
    model = recipe.model
    config = read_config(model.source, trust_remote_code=model.trust_remote_code)
    problems = reference_problems(options.reference, config, recipe.memory, model.precision, model.train)
    if ranks != 1:
        problems.append(f"--reference: HMT-pytorch is run on one GPU, not on {ranks}: use --ranks 1")
    if problems:
        raise ConfigError(problems)


def beside(recipe: Recipe, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    """HMT-pytorch's numbers on the same work, if wanted. They come first: an engine with CUDA graphs stays."""
    if options.reference is None:
        return {}
    logger.info("HMT-pytorch first, on the same work")
    training, source = recipe.training, recipe.model.source
    work = Work(source, recipe.memory, training.batch_size, training.bptt_depth, training.seed)
    found = run_reference(options.reference, work, device, options.steps)
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
    return {"reference": found}


def measure(recipe: Recipe, prepared: Prepared, options: BenchOptions, device: torch.device) -> dict[str, Any]:
    """All numbers, with their units in their names."""
    executor = build_executor(recipe, prepared, device)
    parameters, trained = count_parameters(executor)
    training = recipe.training
    runs = Bench(executor, steps_of(recipe, prepared, options, executor))
    logger.info("warming up, %d steps; then %d timed ones", options.warmup, options.steps)
    if options.warmup < (steps := executor.room.settled_after):
        logger.info("a GPU is at speed after %d steps: --warmup %d is too short", steps, options.warmup)
    runs.warm_up(options.warmup)
    timed = runs.timed(options.steps)
    phases, memory = runs.by_phase(min(CLOCKED_STEPS, options.steps)), runs.memory(peak_resident_bytes())
    segments = min(runs.short, training.bptt_depth)
    if options.trace:
        trace = runs.trace(options.trace)
        if rank() == 0:
            print(f"trace       {trace}", flush=True)
    flops = arithmetic(executor, parameters, trained, training.batch_size, training.bptt_depth)
    peaks = peak_rates(device)
    return {
        "run": described(recipe, options, device, executor) | {"parameters": parameters, "trained_parameters": trained},
        "compute": asdict(executor.compute),
        "plan": asdict(executor.room.plan) if executor.stages == 1 else None,
        "pipeline": pipeline_results_of(executor, training.gradient_accumulation, segments, phases),
        "steps": [asdict(step) for step in timed],
        "peak_flops_per_second": peaks,
        "flops": flops,
        "speed": speeds(timed, flops, training.gradient_accumulation / executor.stages, peaks),
        "phase_seconds": phases[0],
        "phase_segments": segments,
        "memory": memory,
    }


def pipeline_results_of(
    executor: ZeroExecutor, windows: int, segments: int, phases: list[dict[str, float]]
) -> dict[str, Any] | None:
    """Its numbers, if it is one."""
    return pipeline_results(executor, windows, segments, phases) if isinstance(executor, PipelineExecutor) else None


def described(recipe: Recipe, options: BenchOptions, device: torch.device, executor: ZeroExecutor) -> dict[str, Any]:
    """What was run."""
    training = recipe.training
    return {
        "ranks": world_size(),
        "device": device_name(device),
        "precision": recipe.model.precision,
        "zero_stage": executor.engine.zero_optimization_stage(),
        "pipelines": executor.data_ranks,
        "mode": recipe.memory.mode,
        "segment_length_tokens": recipe.memory.segment_length,
        "bptt_depth_segments": training.bptt_depth,
        "batch_size": training.batch_size,
        "windows_per_step": training.gradient_accumulation,
        "tokens": options.tokens,
        "fresh": options.fresh,
        "warmup_steps": options.warmup,
        "torch": torch.__version__,
    }


def steps_of(
    recipe: Recipe, prepared: Prepared, options: BenchOptions, executor: ZeroExecutor
) -> Iterator[list[Window]]:
    """The windows of one step after the other; all stages of a pipeline have the same."""
    training = recipe.training
    windows: Iterator[Window]
    if options.tokens == "data":
        windows = map(as_window, training_loader(recipe, prepared))
    else:
        windows = random_windows(
            training.batch_size,
            training.bptt_depth,
            recipe.memory.segment_length,
            executor.engine.module.backbone.vocabulary,
            seed=training.seed + executor.data_rank,
            fresh=options.fresh,
        )
    while True:
        yield list(islice(windows, training.gradient_accumulation))


def peak_rates(device: torch.device) -> dict[str, float]:
    """What a GPU can do in FLOP/s, by its datasheet and as measured now; nothing on CPUs."""
    if device.type == "cpu":
        return {}
    measured, datasheet = matrix_rate(device), peak_flops(device_name(device))
    return {"measured": measured} | ({"datasheet": datasheet} if datasheet else {})


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return "CPU" if device.type == "cpu" else torch.get_device_module(device).get_device_name()
