"""Steps of an executor, timed: at full speed, by phases, for their memory, and for a trace."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.benchmark.footprint import MemoryProbe, footprint
from hmt_ds.benchmark.pipeline_phases import keeps_of_stages, repeated_positions_on_pipeline
from hmt_ds.distributed.deepspeed_internals import full_numel
from hmt_ds.distributed.process_group import add_up, from_all_ranks, rank, world_size
from hmt_ds.memory import Window
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.planning.flops import rates, repeated_positions, useful_flops_per_token
from hmt_ds.reporting.phase_clock import PHASES, PIPELINE_PHASES, PhaseClock

CLOCKED_STEPS = 2
# Segments, at least, of a window that is read for anything but the timed steps: a document of a million tokens is not
# read ten times. The peak is the timed steps'.
SHORT = 16


@dataclass(frozen=True)
class TimedStep:
    """One optimizer step.

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


def random_windows(
    batch: int, segments: int, length: int, vocabulary: int, *, seed: int, fresh: bool
) -> Iterator[Window]:
    """Windows of random tokens without end; every row is one document, or begins one in each window.

    Args:
        seed: those of ranks that read other rows should differ.
        fresh: whether each window begins new documents. Else memories are carried on, as in training on long ones.
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
    """Its first segments."""
    first = (getattr(window, name)[:, :segments] for name in ("input_ids", "labels", "lengths", "starts"))
    return Window(*first)


class Bench:
    """Runs an executor's steps and measures them; all ranks call the same methods.

    Args:
        executor: freshly built.
        steps: the windows of one step after the other.
    """

    def __init__(self, executor: ZeroExecutor, steps: Iterator[list[Window]]):
        self.executor, self.steps = executor, steps
        self.peak = 0  # bytes, of the timed steps, on GPUs

    def warm_up(self, steps: int) -> None:
        """Steps that nobody times."""
        for _ in range(steps):
            self.executor.train_batch(self.short_step())

    @property
    def short(self) -> int:
        """Segments of a shortened window. It has all that a whole one has, or a whole one would meet what was neither
        compiled nor captured: segments that are kept, one that is not, and batches of summaries of one size."""
        if self.executor.stages > 1:
            return SHORT
        plan = self.executor.room.plan
        batches = math.ceil(max(SHORT, plan.kept_segments + 1) / plan.summary_segments)
        return batches * plan.summary_segments

    def short_step(self, windows: int | None = 1) -> list[Window]:
        """The first windows of a step, or all, cut off behind some segments."""
        return [shortened(window, self.short) for window in next(self.steps)[:windows]]

    def timed(self, steps: int) -> list[TimedStep]:
        """Steps at full speed: two phases are timed, which takes four events and no waiting."""
        clock = PhaseClock(self.executor.device, only=("reduce", "step"))
        if self.executor.device.type != "cpu":
            torch.get_device_module(self.executor.device).reset_peak_memory_stats()
        found = [self.clocked(clock, next(self.steps)) for _ in range(steps)]
        if self.executor.device.type != "cpu":
            self.peak = torch.get_device_module(self.executor.device).max_memory_allocated()
        return [TimedStep(sum(s.values()), sum(s.values()) - s["other"], tokens, loss) for s, tokens, loss in found]

    def by_phase(self, steps: int) -> list[dict[str, float]]:
        """Seconds of each phase of a step, all of them timed: the mean of so many steps, on each rank."""
        clock = PhaseClock(self.executor.device)
        found = [self.clocked(clock, self.short_step(None))[0] for _ in range(steps)]
        names = PHASES if self.executor.stages == 1 else PIPELINE_PHASES
        mean = {name: sum(seconds.get(name, 0.0) for seconds in found) / steps for name in names}
        return from_all_ranks(mean)

    def clocked(self, clock: PhaseClock, windows: list[Window]) -> tuple[dict[str, float], int, float]:
        """One step: seconds by phase, fresh tokens of all ranks, loss."""
        if self.executor.device.type != "cpu":
            torch.get_device_module(self.executor.device).synchronize()
        self.executor.phase = clock
        clock.begin()
        output = self.executor.train_batch(windows)
        seconds = clock.end()
        self.executor.phase = nullcontext
        return seconds, output.fresh_tokens, output.loss

    def memory(self, resident: int) -> dict[str, Any]:
        """Peak and parts of one more step, on the rank with the highest peak.

        Args:
            resident: bytes that this process holds, for CPUs.
        """
        probe = MemoryProbe(self.executor)
        self.executor.phase = probe
        self.executor.train_batch(self.short_step())
        self.executor.phase = nullcontext
        probe.note()
        every = from_all_ranks({"rank": rank()} | footprint(probe, self.peak or resident))
        return max(every, key=lambda found: found["peak_bytes"])

    def trace(self, folder: Path) -> Path:
        """A trace of one more step, by rank 0, with the phases named in it."""
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


def arithmetic(executor: ZeroExecutor, parameters: int, trained: int, batch: int, segments: int) -> dict[str, Any]:
    """What FLOPs a window takes on the rank or the stages that read it, and what they are counted from."""
    settings = executor.settings
    module, name = decoder_layers(cast(CausalLM, executor.engine.module.backbone))
    in_layers = sum(full_numel(weight) for weight in getattr(module, name).parameters())
    if executor.stages > 1:
        of_all = add_up(torch.tensor(in_layers, dtype=torch.float64, device=executor.device))
        in_layers = round(float(of_all) / executor.data_ranks)
    twice, again = executor.compute.recompute == "segment+layer", 0.0
    if isinstance(executor, PipelineExecutor):
        keeps = keeps_of_stages(executor, segments)
        parts = executor.micro_batches
        summary_group = executor.summary_group(segments, parts)
        again = repeated_positions_on_pipeline(settings, keeps, parts, summary_group, segments, layers_again=twice)
    else:
        again = repeated_positions(settings, executor.room.plan, segments, layers_again=twice)
    per_token = useful_flops_per_token(parameters, trained, settings)
    useful = per_token * batch * segments * settings.segment_length
    return {
        "useful_flops_per_token": per_token,
        "useful_flops_per_window": useful,
        "repeated_flops_per_window": 2 * in_layers * batch * again,
        "layer_parameters": in_layers,
    }


def speeds(
    steps: list[TimedStep], flops: dict[str, Any], windows: float, peaks: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Rates of the median step, and of the median step's forward and backward alone.

    Args:
        flops: from :func:`arithmetic`.
        windows: of a step, for each rank: on a ring its stages share one.
        peaks: FLOP/s of the device, by where they are known from.
    """
    repeated = flops["repeated_flops_per_window"] * windows

    def median(seconds: list[float]) -> dict[str, Any]:
        tokens = [step.fresh_tokens / world_size() for step in steps]
        took, read = sorted(zip(seconds, tokens, strict=True), key=lambda pair: pair[0] / pair[1])[len(steps) // 2]
        useful = flops["useful_flops_per_token"] * read
        return {"seconds": took, **rates(read, took, useful, useful + repeated, peaks)}

    return {
        "whole_step": median([step.seconds for step in steps]),
        "forward_and_backward": median([step.seconds - step.reduce_and_step_seconds for step in steps]),
    }
