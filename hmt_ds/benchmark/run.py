"""Benchmark a recipe on all ranks: run some steps, report speed and memory."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice

import torch
from rich.console import Console, RenderableType

from hmt_ds.backbones import read_config
from hmt_ds.benchmark.bench_options import BenchOptions
from hmt_ds.benchmark.measure import CLOCKED_STEPS, Bench, flops_of, random_windows, speeds
from hmt_ds.benchmark.pipeline_phases import PipelineResults, pipeline_results
from hmt_ds.benchmark.reference import Work, reference_problems, run_reference
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.options import parse_options
from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.process_group import rank, world_size
from hmt_ds.memory import Window
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.protocols import Executor
from hmt_ds.planning.flops import matrix_rate, peak_flops
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.preflight.source_run import with_source_of_run
from hmt_ds.reporting.bench_tables import bench_tables, reference_tables
from hmt_ds.training.build import build_executor, count_parameters, training_loader
from hmt_ds.training.evaluation_in_run import as_window
from hmt_ds.training.rank import peak_resident_bytes, prepare_together

logger = logging.getLogger(__name__)

Result = dict[str, object]  # numbers by name, with their units in the names; what --json writes


def bench(recipe_file: str, words: list[str], device: torch.device) -> None:
    """Run `hmt-ds bench` on this rank: measure some training steps, print tables, and write a JSON file if requested.

    Args:
        recipe_file: path of the recipe.
        words: options of the command, and keys of the recipe to change, such as ``["--steps", "5"]``.
        device: device of this rank.

    Raises:
        ConfigError: the recipe or the options cannot be run.
    """
    options, overrides = parse_options(BenchOptions, words)
    recipe = measured_recipe(load_recipe(recipe_file, overrides))
    prepared = prepare_together(recipe, recipe_file, writes_output=False, with_data=options.tokens == "data")
    check_reference(recipe, options, world_size())
    # HMT-pytorch runs first: CUDA graphs of our own engine would keep their memory
    reference = reference_results(recipe, options, device)
    result = measure(recipe, prepared, options, device) | reference
    publish([*bench_tables(result), *(reference_tables(result) if reference else [])], result, options)


def measured_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe to benchmark: with the largest depth of its depth schedule, and without another run's weights.

    The depth is the number of segments that gradients flow through.

    Args:
        recipe: the recipe of a training run.
    """
    recipe, _ = with_source_of_run(recipe)
    one_depth = {"bptt_depth": recipe.depths.largest, "random_depth": False}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=one_depth)})


def publish(tables: Iterable[RenderableType], result: Result, options: BenchOptions) -> None:
    """Print a benchmark's tables and write its JSON file, on rank 0.

    Args:
        tables: the tables.
        result: content of the JSON file.
        options: options of `hmt-ds bench`.
    """
    if rank() == 0:
        console = Console()
        for table in tables:
            console.print(table)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=1))
            print(f"numbers     {options.json}", flush=True)


def check_reference(recipe: Recipe, options: BenchOptions, ranks: int) -> None:
    """Check whether HMT-pytorch can run the work of a valid recipe; pass if ``--reference`` is not given.

    Args:
        recipe: the recipe.
        options: options of `hmt-ds bench`.
        ranks: number of ranks.

    Raises:
        ConfigError: with a line for each problem.
    """
    if options.reference is None:
        return
    model = recipe.model
    config = read_config(model.source, trust_remote_code=model.trust_remote_code)
    problems = reference_problems(options.reference, config, recipe.memory, model.precision, model.train)
    if ranks != 1:
        problems.append(f"--reference: HMT-pytorch runs on one GPU, not on {ranks}: use --ranks 1")
    if problems:
        raise ConfigError(problems)


def reference_results(recipe: Recipe, options: BenchOptions, device: torch.device) -> Result:
    """Measure HMT-pytorch on the work of a recipe, if ``--reference`` is given.

    Args:
        recipe: the recipe.
        options: options of `hmt-ds bench`.
        device: device of this rank.

    Returns:
        The measurements by name, for the JSON file; an empty dict if ``--reference`` is not given.
    """
    if options.reference is None:
        return {}
    logger.info("HMT-pytorch first, on the same work")
    training, source = recipe.training, recipe.model.source
    work = Work(source, recipe.memory, training.batch_size, recipe.depths.largest, training.seed)
    found = run_reference(options.reference, work, device, options.steps)
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
    return {"reference": found}


def measure(recipe: Recipe, prepared: Prepared, options: BenchOptions, device: torch.device) -> Result:
    """Measure speed, phases and memory of a recipe's training steps; return the content of the JSON file.

    Args:
        recipe: the recipe.
        prepared: DeepSpeed's configuration and data, from the checks before a run.
        options: options of `hmt-ds bench`.
        device: device of this rank.
    """
    executor = build_executor(recipe, prepared, device)
    parameters, trained = count_parameters(executor)
    training = recipe.training
    runs = Bench(executor, steps_of(recipe, prepared, options, executor))
    logger.info("%d warm-up steps, then %d timed ones", options.warmup, options.steps)
    if options.warmup < (steps := executor.budget.warm_up_steps):
        logger.info("a GPU reaches full speed after %d steps: --warmup %d is too short", steps, options.warmup)
    runs.warm_up(options.warmup)
    timed = runs.timed(options.steps)
    phases, memory = runs.by_phase(min(CLOCKED_STEPS, options.steps)), runs.memory(peak_resident_bytes())
    segments = min(runs.short, recipe.depths.largest)
    if options.trace:
        trace = runs.trace(options.trace)
        if rank() == 0:
            print(f"trace       {trace}", flush=True)
    flops = flops_of(executor, parameters, trained, training.batch_size, recipe.depths.largest)
    peaks = peak_rates(device)
    return {
        "run": run_facts(recipe, options, device, executor) | {"parameters": parameters, "trained_parameters": trained},
        "compute": asdict(executor.compute),
        "plan": asdict(executor.budget.plan) if executor.stages == 1 else None,
        "pipeline": results_of_pipeline(executor, training.gradient_accumulation, segments, phases),
        "steps": [asdict(step) for step in timed],
        "peak_flops_per_second": peaks,
        "flops": flops,
        "speed": speeds(timed, flops, training.gradient_accumulation / executor.stages, peaks),
        "phase_seconds": phases[0],
        "phase_segments": segments,
        "memory": memory,
    }


def results_of_pipeline(
    executor: Executor, windows: int, segments: int, phases: list[dict[str, float]]
) -> PipelineResults | None:
    """Return a pipeline's layout, measured phases and bubbles; None for an executor without pipeline stages.

    Args:
        executor: the model in its engine, after its steps were measured.
        windows: gradient accumulation: number of windows (batches of rows of segments) of a step.
        segments: number of segments of a window.
        phases: seconds by phase, for each rank.
    """
    return pipeline_results(executor, windows, segments, phases) if isinstance(executor, PipelineExecutor) else None


def run_facts(recipe: Recipe, options: BenchOptions, device: torch.device, executor: Executor) -> Result:
    """Return what a benchmark has run, by name: model, device, ranks, sizes of a step and resolved settings.

    Args:
        recipe: the recipe.
        options: options of `hmt-ds bench`.
        device: device of this rank.
        executor: the model in its engine.
    """
    training = recipe.training
    return {
        "ranks": world_size(),
        "device": device_name(device),
        "precision": recipe.model.precision,
        "zero_stage": executor.engine.zero_optimization_stage(),
        "pipelines": executor.data_ranks,
        "mode": recipe.memory.mode,
        "segment_length_tokens": recipe.memory.segment_length,
        "bptt_depth_segments": recipe.depths.largest,
        "batch_size": training.batch_size,
        "windows_per_step": training.gradient_accumulation,
        "tokens": options.tokens,
        "fresh": options.fresh,
        "warmup_steps": options.warmup,
        "torch": torch.__version__,
    }


def steps_of(recipe: Recipe, prepared: Prepared, options: BenchOptions, executor: Executor) -> Iterator[list[Window]]:
    """Yield the input of each training step, of random tokens or documents; pipeline stages get the same input.

    Args:
        recipe: the recipe.
        prepared: data from the preflight checks.
        options: options of `hmt-ds bench`, of which ``--tokens`` chooses between ``random`` and ``data``.
        executor: the model in its engine.

    Yields:
        Windows: batches of rows of consecutive segments.
    """
    training = recipe.training
    windows: Iterator[Window]
    if options.tokens == "data":
        windows = map(as_window, training_loader(recipe, prepared))
    else:
        windows = random_windows(
            training.batch_size,
            recipe.depths.largest,
            recipe.memory.segment_length,
            executor.engine.module.backbone.vocabulary,
            seed=training.seed + executor.data_rank,
            fresh=options.fresh,
        )
    while True:
        yield list(islice(windows, training.gradient_accumulation))


def peak_rates(device: torch.device) -> dict[str, float]:
    """Return a GPU's peak FLOP/s of bf16 matrix products by source; an empty dict on CPUs.

    Args:
        device: the GPU, or the CPU.

    Returns:
        ``measured`` on this GPU, and ``datasheet`` if the GPU's data sheet is known.
    """
    if device.type == "cpu":
        return {}
    measured, datasheet = matrix_rate(device), peak_flops(device_name(device))
    return {"measured": measured} | ({"datasheet": datasheet} if datasheet else {})


def device_name(device: torch.device) -> str:
    """Return the vendor's name of a GPU, or CPU.

    Args:
        device: the device.
    """
    return "CPU" if device.type == "cpu" else torch.get_device_module(device).get_device_name()
