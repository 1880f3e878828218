"""Measured seconds and pipeline bubbles of each stage, beside the bubbles expected from the schedule."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.distributed.process_group import all_gather_object
from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.schedule import Action, Costs, Kind, pipeline_schedule
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.simulate import Link, Machine, simulate

WORK = ("summary", "recall", "forward", "backward")  # the phases of a window, without waiting


@dataclass(frozen=True)
class PipelineWindow:
    """The sizes of a training batch on a pipeline, and the forward passes that are not recomputed.

    Attributes:
        segments: number of segments that gradients flow through.
        micro_batches: number of micro-batches that the rows are split into.
        summary_group: number of micro-batches that one pass computes retrieval queries for.
        settings: settings of the memory.
        kept_graphs: for each stage, the forward passes that keep their autograd graphs.
    """

    segments: int
    micro_batches: int
    summary_group: int
    settings: MemorySettings
    kept_graphs: Sequence[Collection[Action]] = ()

    def schedule(self, stages: int) -> list[list[Action]]:
        """Return the pipeline schedule of the training batch: for each stage, its forward and backward passes in order.

        Args:
            stages: number of stages.
        """
        return pipeline_schedule(
            stages,
            self.segments,
            self.micro_batches,
            mode=self.settings.mode,
            summary_group=self.summary_group,
        )


class PipelineResults(TypedDict):
    """Benchmark results of a pipeline; each list has an entry per stage.

    Attributes:
        stages: number of stages.
        micro_batches: number of micro-batches that the rows are split into.
        summary_group_size: number of micro-batches that one pass computes retrieval queries for.
        layers: number of decoder layers.
        phase_seconds: measured seconds by phase.
        bubbles: measured pipeline bubbles, as fractions (0 to 1) of the time.
        schedule_bubbles: bubbles of the simulated schedule if all stages were equally fast.
        simulated_bubbles: bubbles of the simulated schedule with the measured durations.
        forward_passes: number of forward passes per truncated-BPTT window; memory retrievals do not count.
        kept_graphs: number of forward passes that keep their autograd graphs.
    """

    stages: int
    micro_batches: int
    summary_group_size: int
    layers: list[int]
    phase_seconds: list[dict[str, float]]
    bubbles: list[float]
    schedule_bubbles: list[float]
    simulated_bubbles: list[float]
    forward_passes: int
    kept_graphs: list[int]


def pipeline_window(executor: PipelineExecutor, segments: int) -> PipelineWindow:
    """Return the sizes of an executor's training batches on a pipeline. All ranks must call it.

    Args:
        executor: this rank's executor.
        segments: number of segments that gradients flow through.
    """
    micro_batches, settings = executor.runner.micro_batches, executor.settings
    kept = executor.budget.choose_graphs(executor.runner.order(segments, settings.mode))
    by_stage = all_gather_object(kept)[:: executor.data_ranks]  # of the first pipeline
    return PipelineWindow(
        segments, micro_batches, executor.runner.summary_group(segments, micro_batches), settings, by_stage
    )


def pipeline_results(
    executor: PipelineExecutor, windows: int, segments: int, phases: list[dict[str, float]]
) -> PipelineResults:
    """Return a pipeline's layout, measured phases and bubbles. All ranks must call it.

    Args:
        executor: this rank's executor, whose steps were measured.
        windows: gradient accumulation: number of windows (batches of rows of segments) of the measured step.
        segments: number of segments of a window.
        phases: seconds by phase, for each rank.
    """
    pipelines, window = executor.data_ranks, pipeline_window(executor, segments)
    module, name = decoder_layers(cast(CausalLM, executor.engine.module.backbone))
    by_stage = [mean(phases[first : first + pipelines]) for first in range(0, len(phases), pipelines)]
    summaries = window.micro_batches // window.summary_group if window.settings.summarises else 0
    return {
        "stages": executor.stages,
        "micro_batches": window.micro_batches,
        "summary_group_size": window.summary_group,
        "layers": all_gather_object(len(getattr(module, name)))[::pipelines],
        "phase_seconds": by_stage,
        "bubbles": measured_bubbles(by_stage),
        "schedule_bubbles": scheduled_bubbles(executor.stages, window),
        "simulated_bubbles": simulated_bubbles(by_stage, windows, window),
        "forward_passes": segments * (window.micro_batches + summaries),
        "kept_graphs": [len(kept) for kept in window.kept_graphs],
    }


def recomputed_positions(window: PipelineWindow, *, layers_again: bool) -> float:
    """Return how many positions per row the decoder layers recompute in the backward pass, averaged over pipeline
    stages.

    Args:
        window: sizes of the training batch.
        layers_again: whether the backward pass recomputes each layer once more (compute.recompute: segment+layer).
    """
    lengths = {Kind.SEGMENT: window.settings.positions, Kind.SUMMARY: summary_positions(window.settings)}
    every = window.segments * sum(lengths.values())
    rows = {Kind.SEGMENT: 1, Kind.SUMMARY: window.summary_group}
    kept = sum(lengths[action.kind] * rows[action.kind] for stage in window.kept_graphs for action in stage)
    return every * (1 + layers_again) - kept / len(window.kept_graphs) / window.micro_batches


def mean(seconds_of_ranks: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean seconds by phase over the ranks of one pipeline stage (one rank of each pipeline).

    Args:
        seconds_of_ranks: seconds by phase, for each rank.
    """
    count = len(seconds_of_ranks)
    return {name: sum(seconds[name] for seconds in seconds_of_ranks) / count for name in seconds_of_ranks[0]}


def measured_bubbles(by_stage: list[dict[str, float]]) -> list[float]:
    """Return each stage's pipeline bubble: the fraction (0 to 1) of the time of forward and backward passes in which it
    idles.

    That time lasts until the last stage is done; a stage that is done earlier waits in the phases that follow.

    Args:
        by_stage: seconds by phase, for each stage.
    """
    whole = max(sum(seconds[name] for name in (*WORK, "wait")) for seconds in by_stage)
    return [1 - sum(seconds[name] for name in WORK) / whole for seconds in by_stage]


def scheduled_bubbles(stages: int, window: PipelineWindow) -> list[float]:
    """Return each stage's pipeline bubble (0 to 1) if all stages were equally fast and messages took no time.

    Args:
        stages: number of stages.
        window: sizes of the training batch.
    """
    costs = Costs(summary=window.settings.summary_share * window.summary_group)
    machine = Machine.uniform(costs, stages, recomputes_early=True, kept_graphs=window.kept_graphs)
    return simulate(window.schedule(stages), machine, window.settings.mode).bubbles


def simulated_bubbles(by_stage: list[dict[str, float]], windows: int, window: PipelineWindow) -> list[float]:
    """Return each stage's pipeline bubble (0 to 1) in a simulation with the measured durations and instant messages.

    Args:
        by_stage: seconds of a step by phase, for each stage.
        windows: gradient accumulation: number of windows (batches of rows of segments) of the measured step.
        window: sizes of a window.
    """
    # phases are of a whole step; the schedule is of one window
    costs = [
        action_seconds({name: seconds / windows for name, seconds in phases.items()}, window, kept)
        for phases, kept in zip(by_stage, window.kept_graphs, strict=True)
    ]
    links = [Link()] * (len(costs) - 1)
    machine = Machine(costs, links, recomputes_early=True, kept_graphs=window.kept_graphs)
    return simulate(window.schedule(len(costs)), machine, window.settings.mode).bubbles


def action_seconds(
    phases: dict[str, float], window: PipelineWindow, kept: Collection[Action]
) -> dict[tuple[Kind, bool], float]:
    """Estimate the seconds of each forward and backward pass of one pipeline stage from its measured phases.

    Args:
        phases: seconds of all passes over a window (a batch of rows of segments), by phase.
        window: sizes of the window.
        kept: forward passes of the stage that are not recomputed.

    Returns:
        Seconds by kind of pass and whether it is a backward pass.
    """
    passes, group, settings = window.segments * window.micro_batches, window.summary_group, window.settings
    share = summary_positions(settings) / settings.positions  # 0 in modes without summaries
    forward = {
        Kind.SEGMENT: phases["forward"] / passes,
        Kind.SUMMARY: phases["summary"] / passes * group,
        Kind.RECALL: phases["recall"] / passes,
    }
    recomputation = phases["forward"] + phases["summary"] - sum(forward[action.kind] for action in kept)
    # what remains of the backward phase, per segment pass
    autograd = (phases["backward"] - recomputation) / (passes * (1 + share))
    backward = {
        Kind.SEGMENT: forward[Kind.SEGMENT] + autograd,
        Kind.SUMMARY: forward[Kind.SUMMARY] + autograd * share * group,
        Kind.RECALL: 0.0,
    }
    return {(kind, False): cost for kind, cost in forward.items()} | {(k, True): c for k, c in backward.items()}
