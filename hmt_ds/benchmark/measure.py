"""Run training steps and measure speed, phases and memory, and write a profiler trace."""

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
        seconds: duration of the whole step.
        reduce_and_step_seconds: duration of the phases ``reduce`` (gradients) and ``step`` (optimizer).
        fresh_tokens: number of tokens read by all ranks, without those repeated from the previous segment.
        loss: mean loss in nats per label.
    """

    seconds: float
    reduce_and_step_seconds: float
    fresh_tokens: int
    loss: float


class Flops(TypedDict):
    """FLOPs of forward and backward passes, all pipeline stages together.

    A window is a batch of rows of several segments, which one truncated-BPTT pass covers.

    Attributes:
        useful_flops_per_token: FLOPs per token read, without recomputation and attention scores.
        useful_flops_per_window: FLOPs per window, without recomputation and attention scores.
        repeated_flops_per_window: FLOPs of recomputation per window.
        layer_parameters: number of parameters in the decoder layers.
    """

    useful_flops_per_token: float
    useful_flops_per_window: float
    repeated_flops_per_window: float
    layer_parameters: int


def random_windows(
    batch: int, segments: int, length: int, vocabulary: int, *, seed: int, fresh: bool
) -> Iterator[Window]:
    """Yield batches of random tokens without end: one endless document per row, or new documents in each batch.

    Args:
        batch: rows of a batch.
        segments: segments of each row in a batch.
        length: tokens of a segment.
        vocabulary: number of different token ids.
        seed: seed of the tokens; ranks with different rows need different seeds.
        fresh: whether each batch begins new documents, so that no memory is carried over from the batch before.
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
    """Return a copy of a window (rows of consecutive segments) with only its first segments.

    Args:
        window: the window.
        segments: number of segments to keep.
    """
    first = (getattr(window, name)[:, :segments] for name in ("input_ids", "labels", "lengths", "starts"))
    return Window(*first)


class Bench:
    """Runs training steps and measures their speed and memory. All ranks call the same methods in the same order.

    Args:
        executor: the model in its engine, which has not taken a step yet.
        steps: yields the input of each step: windows, which are batches of rows of consecutive segments.
    """

    def __init__(self, executor: Executor, steps: Iterator[list[Window]]):
        self.executor, self.steps = executor, steps
        # shortened windows have every kind of work that whole ones have (see short): they are measured as if whole
        executor.budget.counts_from = 1
        self.peak = 0  # bytes, of the timed steps, on GPUs

    def warm_up(self, steps: int) -> None:
        """Run untimed training steps with fewer segments, which compile everything that timed steps need.

        Args:
            steps: number of steps.
        """
        for _ in range(steps):
            self.executor.train_batch(self.short_step())

    @property
    def short(self) -> int:
        """Number of segments to which training steps are shortened for warm-up and wherever speed is not timed.

        A shortened step has every kind of work that a whole one has: segments that keep their activations, a recomputed
        segment, and batches of one size for retrieval queries. Otherwise the timed steps would compile some of it, or
        capture CUDA graphs.
        """
        if self.executor.stages > 1:
            return SHORT_WINDOW
        plan = self.executor.budget.plan
        batches = math.ceil(max(SHORT_WINDOW, plan.kept_segments + 1) / plan.summary_segments)
        return batches * plan.summary_segments

    def short_step(self, windows: int | None = 1) -> list[Window]:
        """Return this rank's input of the next training step, cut to fewer segments, for steps that are not timed.

        Args:
            windows: how many of the step's windows (batches of rows of segments) to return; None for all.
        """
        return [shortened(window, self.short) for window in next(self.steps)[:windows]]

    def timed(self, steps: int) -> list[TimedStep]:
        """Time training steps at full speed; within a step, only gradient reduction and optimizer step are timed
        separately.

        Args:
            steps: number of steps.
        """
        clock = PhaseClock(self.executor.device, only=("reduce", "step"))
        if self.executor.device.type != "cpu":
            torch.get_device_module(self.executor.device).reset_peak_memory_stats()
        found = [self.clocked(clock, next(self.steps)) for _ in range(steps)]
        if self.executor.device.type != "cpu":
            self.peak = torch.get_device_module(self.executor.device).max_memory_allocated()
        return [TimedStep(sum(s.values()), sum(s.values()) - s["other"], tokens, loss) for s, tokens, loss in found]

    def by_phase(self, steps: int) -> list[dict[str, float]]:
        """Time every phase of training steps, which slows them down a little. All ranks must call it together.

        Args:
            steps: number of steps.

        Returns:
            For each rank, the mean seconds of a step by phase, such as ``forward``.
        """
        clock = PhaseClock(self.executor.device)
        found = [self.clocked(clock, self.short_step(None))[0] for _ in range(steps)]
        names = PHASES if self.executor.stages == 1 else PIPELINE_PHASES
        mean = {name: sum(seconds.get(name, 0.0) for seconds in found) / steps for name in names}
        return all_gather_object(mean)

    def clocked(self, clock: PhaseClock, windows: list[Window]) -> tuple[dict[str, float], int, float]:
        """Run one training step and time its phases.

        Args:
            clock: the clock of the executor's phases.
            windows: this rank's input of the step, batches of rows of consecutive segments.

        Returns:
            Seconds by phase, the number of tokens that all ranks read, and the mean loss in nats per label.
        """
        if self.executor.device.type != "cpu":
            torch.get_device_module(self.executor.device).synchronize()
        self.executor.phase = clock
        clock.begin()
        output = self.executor.train_batch(windows)
        seconds = clock.end()
        self.executor.phase = nullcontext
        return seconds, output.fresh_tokens, output.loss

    def memory(self, resident: int) -> Footprint:
        """Measure the memory of one more training step. All ranks must call it together.

        Args:
            resident: resident bytes of this process, which are used as the peak on CPUs.

        Returns:
            The peak and its parts in bytes, on the rank with the highest peak.
        """
        probe = MemoryProbe(self.executor)
        self.executor.phase = probe
        self.executor.train_batch(self.short_step())
        self.executor.phase = nullcontext
        probe.record()
        every = all_gather_object({"rank": rank()} | footprint(probe, self.peak or resident))
        return max(every, key=lambda found: found["peak_bytes"])

    def trace(self, folder: Path) -> Path:
        """Run one more training step and write its profiler trace, with named phases, on rank 0.

        Args:
            folder: folder of the trace, created if missing.

        Returns:
            The file that rank 0 writes.
        """
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
    """Return the FLOPs of an executor's forward and backward passes. With pipeline stages all ranks must call it
    together.

    Args:
        executor: the model in its engine, after it has decided how many segments keep their activations.
        parameters: number of parameters of the whole model.
        trained: number of trained parameters.
        batch: rows per rank or pipeline.
        segments: number of segments that gradients flow through.
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
    """Return the rates (tokens/s, FLOP/s, ...) of the median step, as a whole and of its forward and backward passes
    alone.

    Args:
        steps: measurements of each step.
        flops: FLOPs of a token, and of a window (a batch of rows of segments).
        windows: windows per step and rank; the stages of a pipeline share a window.
        peaks: peak FLOP/s of the device, by source (``measured``, ``datasheet``).

    Returns:
        For ``whole_step`` and ``forward_and_backward``, rates by name as :func:`hmt_ds.planning.flops.rates` gives
        them.
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
