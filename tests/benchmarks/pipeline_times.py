"""Compare the pipeline simulator with measured steps, for several depths and numbers of micro-batches.

torchrun --nproc_per_node P tests/benchmarks/pipeline_times.py RECIPE --pipeline.stages P [--section.key value ...]

A micro-batch is one row of random tokens. All shapes are measured in turn, several times; the fastest step of a shape
counts, because it is the least disturbed. The simulator's costs are medians of its actions, by kind and stage;
or their means, which add up to the step's work even if other processes take the cores for a while. "If it waited": by
the means, if the executor did not recompute before its gradients arrive.

On GPUs times are those of the device's stream. Keep no graphs: --compute.recompute segment.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from statistics import fmean, median
from typing import Any

import torch

from hmt_ds.benchmark.measure import random_windows
from hmt_ds.config.load import load_recipe
from hmt_ds.distributed.process_group import all_gather_object, end_process, rank
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.layer_times import synchronize
from hmt_ds.parallel.pipeline.p2p import TensorSpec
from hmt_ds.parallel.pipeline.schedule import Kind, pipeline_schedule
from hmt_ds.planning.simulate import Link, Machine, Timeline, simulate
from hmt_ds.reporting.phase_clock import PhaseClock
from hmt_ds.training.build import build_executor
from hmt_ds.training.rank import prepare_together, run_as_rank

DEPTHS, PARTS, HOPS = (2, 4, 8), (1, 2, 4), 50
ROUNDS = int(os.environ.get("ROUNDS", "6"))

SHAPES = list(product(DEPTHS, PARTS))
Middle = Callable[[list[float]], float]  # of the durations of an action


class Stopwatch(PhaseClock):
    """Times each action of a step, without waiting; used as an executor's ``phase``."""

    def read(self) -> tuple[float, list[float], float]:
        """End the step; return its seconds, those of each action, and those of waiting."""
        whole, waited = sum(self.end().values()), 0.0
        actions: list[float] = []
        within = 0.0
        for (start, name), (stop, after) in zip(self.marks, self.marks[1:], strict=False):
            if name == "wait":
                waited += self.between(start, stop)
            elif name != "other":
                within += self.between(start, stop)
            if name != "other" and after == "other" and within:
                actions.append(within)
                within = 0.0
        return whole, actions, waited


def main() -> int:
    """Run the comparison; returns the exit code."""
    return run_as_rank(compare)


def compare(recipe_file: str, overrides: list[str], device: torch.device) -> None:
    """Print a table of all shapes."""
    recipe = load_recipe(recipe_file, overrides)
    prepared = prepare_together(recipe, recipe_file, writes_output=False, with_data=False)
    executor = build_executor(recipe, prepared, device)
    assert isinstance(executor, PipelineExecutor)
    rounds = [{shape: step_of(executor, *shape) for shape in SHAPES} for _ in range(ROUNDS + 1)][1:]
    fastest = {shape: min((found[shape] for found in rounds), key=window_of) for shape in SHAPES}
    slower = median(median(window_of(found[shape]) for found in rounds) / window_of(fastest[shape]) for shape in SHAPES)
    hop = seconds_of_hop(executor)
    if rank() == 0:  # results go to stdout without the log's prefix: on_gpus.sh looks for the table
        print(f"a message: {hop * 1000:.1f} ms; the median step took {slower:.2f} x the fastest")
        print("| S | B | segment, ms | step, s | by medians | by means | if it waited | bubbles | by means |")
        print("|" + 9 * "---|")
        for shape, found in fastest.items():
            print(row_of(executor, shape, found, hop), flush=True)


def row_of(executor: PipelineExecutor, shape: tuple[int, int], found: list[dict[str, Any]], hop: float) -> str:
    """Return a table row: the fastest step of a shape beside the simulated one."""
    mode, links = executor.settings.mode, [Link(hop)] * (executor.stages - 1)
    schedule = pipeline_schedule(
        executor.stages, *shape, mode=mode, summary_group=executor.runner.summary_group(*shape)
    )
    end = min(stage["after"] for stage in found)

    def predicted(middle: Middle, recomputes_early: bool = True) -> Timeline:
        machine = Machine(costs_of(found, middle), links, Link(hop), recomputes_early=recomputes_early)
        return simulate(schedule, machine, mode, end)

    seconds, window = found[0]["seconds"], window_of(found)
    mains = ", ".join(f"{cost[Kind.SEGMENT, False] * 1000:.0f}" for cost in costs_of(found, median))
    guesses = [predicted(median), predicted(fmean), predicted(fmean, recomputes_early=False)]
    times = [f"{guess.time:.3f} ({guess.time / seconds - 1:+.1%})" for guess in guesses]
    bubbles = listed([1 - sum(stage["actions"]) / window for stage in found])
    cells = [*map(str, shape), mains, f"{seconds:.3f}", *times, bubbles, listed(guesses[1].bubbles)]
    return f"| {' | '.join(cells)} |"


def step_of(executor: PipelineExecutor, segments: int, parts: int) -> list[dict[str, Any]]:
    """Run a step; return its times on each stage."""
    settings = executor.settings
    vocabulary = executor.engine.module.backbone.vocabulary
    windows = random_windows(parts, segments, settings.segment_length, vocabulary, seed=0, fresh=True)
    executor.runner.micro_batches, executor.state, watch = parts, None, Stopwatch(executor.device)
    synchronize(executor.device)
    executor.phase = watch
    watch.begin()
    executor.train_batch([next(windows)])
    seconds, (*actions, reduction, update), waited = watch.read()
    executor.phase = nullcontext
    return all_gather_object({"seconds": seconds, "actions": actions, "waited": waited, "after": reduction + update,
                           "order": executor.runner.order(segments, settings.mode)})  # fmt: skip


def window_of(found: list[dict[str, Any]]) -> float:
    """Return the seconds of the window, until the last stage is done."""
    return max(sum(stage["actions"]) + stage["waited"] for stage in found)


def costs_of(found: list[dict[str, Any]], middle: Middle) -> list[dict[tuple[Kind, bool], float]]:
    """Return the duration of each kind of action, by stage."""
    costs = []
    for stage in found:
        every = defaultdict(list)
        for action, seconds in zip(stage["order"], stage["actions"], strict=True):
            every[action.kind, action.backward].append(seconds)
        costs.append({kind: middle(seconds) for kind, seconds in every.items()})
    return costs


def seconds_of_hop(executor: PipelineExecutor) -> float:
    """Measure a segment's message from the first stage to the second: half of a round trip."""
    topology, size = executor.topology, (1, executor.settings.positions, executor.runner.hidden_size)
    message, times = torch.zeros(size, dtype=executor.dtype, device=executor.device), []
    channels = topology.channels
    ends = {0: (channels.backward_in, channels.forward_out), 1: (channels.forward_in, channels.backward_out)}
    incoming, outgoing = ends.get(topology.stage, ends[0])
    for _ in range(HOPS if topology.stage in ends else 0):
        start = time.perf_counter()
        if topology.is_first:
            outgoing.send(message)
        incoming.receive(TensorSpec(size, executor.dtype))
        synchronize(executor.device)
        if not topology.is_first:
            outgoing.send(message)
        times.append((time.perf_counter() - start) / 2)
    return all_gather_object(median(times) if times else 0.0)[0]


def listed(shares: list[float]) -> str:
    """Format one share per stage."""
    return ", ".join(f"{share:.1%}" for share in shares)


if __name__ == "__main__":
    end_process(main())
