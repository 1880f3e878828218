"""Run an executor's steps and measure them: at full speed, by phase, for memory, and for a trace."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import torch

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.benchmark.footprint import Footprint, MemoryProbe, footprint
from hmt_ds.benchmark.pipeline_phases import pipeline_window, recomputed_positions
from hmt_ds.distributed.deepspeed_internals import full_numel
from hmt_ds.distributed.process_group import all_gather_object, all_reduce_sum, rank, world_size
from hmt_ds.memory import Window
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.protocols import Executor
from hmt_ds.planning.flops import rates, repeated_positions, useful_flops_per_token
from hmt_ds.reporting.phase_clock import PHASES, PIPELINE_PHASES, PhaseClock

CLOCKED_STEPS = 2
# Least segments of a window in all but the timed steps, so that a document of a million tokens is not read ten times.
# The peak memory is that of the timed steps.
SHORT_WINDOW = 16


@dataclass(frozen=True)
class TimedStep:
    """Measurements of one optimizer step.

    Attributes:
        seconds: of the whole step.
        reduce_and_step_seconds: of its phases ``reduce`` and ``step``.
        fresh_tokens: of all ranks.
        loss: in nats per label.
    """

    seconds: float
    reduce_and_step_seconds: float
    fresh_tokens: int
    loss: float


class Flops(TypedDict):
    """FLOPs of a window, summed over its pipeline stages, and the number of parameters in the layers."""

    useful_flops_per_token: float
    useful_flops_per_window: float
    repeated_flops_per_window: float
    layer_parameters: int


def random_windows(
    batch: int, segments: int, length: int, vocabulary: int, *, seed: int, fresh: bool
) -> Iterator[Window]:
    """Yield windows of random tokens without end; each row is one document, or begins one in every window.

    Args:
        seed: should differ between ranks with different rows.
        fresh: whether each window begins new documents. Otherwise memories are carried on, as in long documents.
    """
    generator = torch.Generator().manual_seed(seed)
    following = torch.randint(vocabulary, (batch, 1), generator=generator)
    shape, first = (batch, segments, length), True
    while True:
        new = torch.randint(vocabulary, (batch, segments * length), generator=generator)
        ids = torch.cat([following, new], dim=1)
        following = ids[:, -1:]
        starts = torch.zeros(batch, segments, dtype=torch.bool)
        starts[:, 0] = first or fresh
        first = False
        yield Window(
            ids[:, :-1].reshape(shape), ids[:, 1:].reshape(shape), torch.full((batch, segments), length), starts
        )


def shortened(window: Window, segments: int) -> Window:
    """Return the first segments of a window."""
    first = (getattr(window, name)[:, :segments] for name in ("input_ids", "labels", "lengths", "starts"))
    return Window(*first)


class Bench:
    """Runs an executor's steps and measures them. All ranks call the same methods.

    Args:
        executor: freshly built.
        steps: yields the windows of each step.
    """

    def __init__(self, executor: Executor, steps: Iterator[list[Window]]):
        self.executor, self.steps = executor, steps
        self.peak = 0  # bytes, of the timed steps, on GPUs

    def warm_up(self, steps: int) -> None:
        """Run untimed steps."""
        for _ in range(steps):
            self.executor.train_batch(self.short_step())

    @property
    def short(self) -> int:
        """Segments of a shortened window.

        It has every kind of work that a whole window has: kept segments, a recomputed one, and summary batches of one
        size. Otherwise the timed steps would be the first to compile it or to capture it in CUDA graphs.
        """
        if self.executor.stages > 1:
            return SHORT_WINDOW
        plan = self.executor.budget.plan
        batches = math.ceil(max(SHORT_WINDOW, plan.kept_segments + 1) / plan.summary_segments)
        return batches * plan.summary_segments

    def short_step(self, windows: int | None = 1) -> list[Window]:
        """Return the first windows of the next step, or all of them, shortened."""
        return [shortened(window, self.short) for window in next(self.steps)[:windows]]

    def timed(self, steps: int) -> list[TimedStep]:
        """Run steps at full speed: only two phases are timed, with four events and without synchronization."""
        clock = PhaseClock(self.executor.device, only=("reduce", "step"))
        if self.executor.device.type != "cpu":
            torch.get_device_module(self.executor.device).reset_peak_memory_stats()
        found = [self.clocked(clock, next(self.steps)) for _ in range(steps)]
        if self.executor.device.type != "cpu":
            self.peak = torch.get_device_module(self.executor.device).max_memory_allocated()
        return [TimedStep(sum(s.values()), sum(s.values()) - s["other"], tokens, loss) for s, tokens, loss in found]

    def by_phase(self, steps: int) -> list[dict[str, float]]:
        """Time every phase of several steps; return the mean seconds by phase, of each rank."""
        clock = PhaseClock(self.executor.device)
        found = [self.clocked(clock, self.short_step(None))[0] for _ in range(steps)]
        names = PHASES if self.executor.stages == 1 else PIPELINE_PHASES
        mean = {name: sum(seconds.get(name, 0.0) for seconds in found) / steps for name in names}
        return all_gather_object(mean)

    def clocked(self, clock: PhaseClock, windows: list[Window]) -> tuple[dict[str, float], int, float]:
        """Run one step; return seconds by phase, fresh tokens of all ranks, and the loss."""
        if self.executor.device.type != "cpu":
            torch.get_device_module(self.executor.device).synchronize()
        self.executor.phase = clock
        clock.begin()
        output = self.executor.train_batch(windows)
        seconds = clock.end()
        self.executor.phase = nullcontext
        return seconds, output.fresh_tokens, output.loss

    def memory(self, resident: int) -> Footprint:
        """Probe one more step; return the peak memory and its parts, of the rank with the highest peak.

        Args:
            resident: bytes of this process, the peak on CPUs.
        """
        probe = MemoryProbe(self.executor)
        self.executor.phase = probe
        self.executor.train_batch(self.short_step())
        self.executor.phase = nullcontext
        probe.record()
        every = all_gather_object({"rank": rank()} | footprint(probe, self.peak or resident))
        return max(every, key=lambda found: found["peak_bytes"])

    def trace(self, folder: Path) -> Path:
        """Run one more step and write its trace, with named phases, on rank 0; return the file."""
        file = folder / "step.json"
        self.executor.phase = torch.profiler.record_function
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            with torch.profiler.profile() as profiler:
                self.executor.train_batch(self.short_step())
            profiler.export_chrome_trace(str(file))
        else:
            self.executor.train_batch(self.short_step())
        self.executor.phase = nullcontext
        return file


def flops_of(executor: Executor, parameters: int, trained: int, batch: int, segments: int) -> Flops:
    """Return the FLOPs of a window. Collective on a pipeline.

    Args:
        parameters: of the whole model.
        trained: how many of them are trained.
        batch: rows per rank or pipeline.
        segments: of the window.
    """
    settings = executor.settings
    module, name = decoder_layers(cast(CausalLM, executor.engine.module.backbone))
    in_layers = sum(full_numel(weight) for weight in getattr(module, name).parameters())
    if executor.stages > 1:
        total = all_reduce_sum(torch.tensor(in_layers, dtype=torch.float64, device=executor.device))
        in_layers = round(float(total) / executor.data_ranks)
    layers_again = executor.compute.recompute == "segment+layer"
    if isinstance(executor, PipelineExecutor):
        again = recomputed_positions(pipeline_window(executor, segments), layers_again=layers_again)
    else:
        again = repeated_positions(settings, executor.budget.plan, segments, layers_again=layers_again)
    per_token = useful_flops_per_token(parameters, trained, settings)
    return {
        "useful_flops_per_token": per_token,
        "useful_flops_per_window": per_token * batch * segments * settings.segment_length,
        "repeated_flops_per_window": 2 * in_layers * batch * again,
        "layer_parameters": in_layers,
    }


def speeds(
    steps: list[TimedStep], flops: Flops, windows: float, peaks: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Return the rates of the median step: whole, and its forward and backward passes alone.

    Args:
        windows: per step and rank; the stages of a pipeline share a window.
        peaks: FLOP/s of the device, by source.
    """
    repeated = flops["repeated_flops_per_window"] * windows

    def median(seconds: list[float]) -> dict[str, float]:
        tokens = [step.fresh_tokens / world_size() for step in steps]
        took, fresh = sorted(zip(seconds, tokens, strict=True), key=lambda pair: pair[0] / pair[1])[len(steps) // 2]
        useful = flops["useful_flops_per_token"] * fresh
        return {"seconds": took, **rates(fresh, took, useful, useful + repeated, peaks)}

    return {
        "whole_step": median([step.seconds for step in steps]),
        "forward_and_backward": median([step.seconds - step.reduce_and_step_seconds for step in steps]),
    }
