"""Measure the training time that a checkpoint costs, written in the foreground and in the background.

python tests/benchmarks/save_cost.py RECIPE FOLDER [--section.key value ...]   (under any launcher; random tokens)
"""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hmt_ds.benchmark.bench_options import BenchOptions
from hmt_ds.benchmark.run import steps_of
from hmt_ds.checkpoint import Retention, RunPosition, Saver
from hmt_ds.config.load import load_recipe
from hmt_ds.distributed.process_group import end_process, world_size
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.training.build import build_executor
from hmt_ds.training.identity import identity
from hmt_ds.training.rank import prepare_together, run_as_rank

logger = logging.getLogger("hmt_ds.tests")  # the log shows what is below the package's name

WARMUP = 6


def main() -> int:
    """Run the measurement; returns the exit code."""
    return run_as_rank(measure)


def measure(recipe_file: str, words: list[str], device: torch.device) -> None:
    """Train some steps without saving, and some with."""
    folder, *overrides = words
    recipe = load_recipe(recipe_file, overrides)
    prepared = prepare_together(recipe, recipe_file, writes_output=False, with_data=False)
    executor = build_executor(recipe, prepared, device)
    options = BenchOptions()
    steps = steps_of(recipe, prepared, replace(options, tokens="random"), executor)
    for _ in range(WARMUP):
        executor.train_batch(next(steps))
    plain = [timed(lambda: executor.train_batch(next(steps))) for _ in range(10)]
    step = median(plain)
    logger.info(f"a step without saving: {step:.3f} s")
    # the first save in the background allocates the pinned memory that later ones reuse
    for number, how in enumerate(("in the foreground", "in the background", "in the background again")):
        saver = Saver(Path(folder) / f"{number}", identity(recipe, prepared), Retention(1), background=number > 0)
        lost, taken, written = save_once(executor, saver, steps, step)
        logger.info(f"{how}: {lost:.2f} s lost, {taken:.2f} s until it was visible, {written / 2**30:.2f} GiB")


def save_once(executor: ZeroExecutor, saver: Saver, steps: Any, step: float) -> tuple[float, float, int]:
    """Return the seconds lost, the seconds until the checkpoint is visible, and its bytes."""
    started, done = time.perf_counter(), 0
    saver.begin(executor, RunPosition(1))
    logger.info(f"begun after {time.perf_counter() - started:.2f} s")
    while executor.train_batch(next(steps), (saver.written(),)).flags[0] < world_size():
        done += 1
    checkpoint = saver.finish()
    taken = time.perf_counter() - started
    assert checkpoint is not None
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    return taken - (done + 1) * step, taken, size


def timed(work: Any) -> float:
    """Return the seconds that the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.argv = [word for word in sys.argv if not word.startswith("--local_rank")]
    end_process(main())
