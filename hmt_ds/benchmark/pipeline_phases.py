"""What the stages of a ring do with the time of a step, as measured, beside their schedule."""

from collections.abc import Collection, Sequence
from typing import Any, cast

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.distributed.process_group import from_all_ranks
from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.schedule import Action, Costs, Kind, pipeline_schedule
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.simulate import Link, Machine, simulate

WORK = ("summary", "recall", "forward", "backward")  # the phases of a window, but for waiting


def pipeline_results(
    executor: PipelineExecutor, windows: int, segments: int, phases: list[dict[str, float]]
) -> dict[str, Any]:
    """What a ring is, and its phases and bubbles by stage. All ranks call it.

    Args:
        windows: of the step whose phases were measured.
        segments: of each of them.
        phases: seconds of each rank's.
    """
    pipelines, parts = executor.data_ranks, executor.micro_batches
    module, name = decoder_layers(cast(CausalLM, executor.engine.module.backbone))
    by_stage = [mean(phases[first : first + pipelines]) for first in range(0, len(phases), pipelines)]
    keeps, summary_group = keeps_of_stages(executor, segments), executor.summary_group(segments, parts)
    shape = (segments, parts, summary_group, executor.settings, keeps)
    return {
        "stages": executor.stages,
        "micro_batches": parts,
        "summary_group_size": summary_group,
        "layers": from_all_ranks(len(getattr(module, name)))[::pipelines],
        "phase_seconds": by_stage,
        "bubbles": measured_bubbles(by_stage),
        "schedule_bubbles": scheduled_bubbles(executor.stages, *shape),
        "simulated_bubbles": simulated_bubbles(by_stage, windows, *shape),
        "actions": segments * (parts + parts // summary_group * (executor.settings.mode == "hmt")),
        "kept_graphs": [len(kept) for kept in keeps],
    }


def keeps_of_stages(executor: PipelineExecutor, segments: int) -> list[frozenset[Action]]:
    """The actions of a window that keep their graphs, of the first pipeline's stages. All ranks call it."""
    kept = executor.room.choose_graphs(executor.order(segments, executor.settings.mode))
    return from_all_ranks(kept)[:: executor.data_ranks]


def repeated_positions_on_pipeline(
    settings: MemorySettings,
    keeps: Sequence[Collection[Action]],
    micro_batches: int,
    summary_group: int,
    segments: int,
    *,
    layers_again: bool,
) -> float:
    """How many positions of one row of a window the layers read forward more than once, on the mean stage.

    Args:
        keeps: of each stage, the actions that keep their graphs.
        summary_group: of how many micro-batches a summary is.
        layers_again: whether each layer is read forward once more when it goes backward (segment+layer).
    """
    lengths = {Kind.SEGMENT: settings.positions, Kind.SUMMARY: summary_positions(settings)}
    every = segments * sum(lengths.values())
    rows = {Kind.SEGMENT: 1, Kind.SUMMARY: summary_group}
    kept = (
        sum(lengths[action.kind] * rows[action.kind] for stage in keeps for action in stage)
        / len(keeps)
        / micro_batches
    )
    return every * (1 + layers_again) - kept


def mean(found: list[dict[str, float]]) -> dict[str, float]:
    """Of a stage's ranks, one in each pipeline."""
    return {name: sum(seconds[name] for seconds in found) / len(found) for name in found[0]}


def measured_bubbles(by_stage: list[dict[str, float]]) -> list[float]:
    """The share of the windows' time that each stage does not work.

    The windows last until the last stage is done; those that are done before wait in the phases that follow.
    """
    whole = max(sum(seconds[name] for name in (*WORK, "wait")) for seconds in by_stage)
    return [1 - sum(seconds[name] for name in WORK) / whole for seconds in by_stage]


def scheduled_bubbles(
    stages: int,
    segments: int,
    micro_batches: int,
    summary_group: int,
    settings: MemorySettings,
    keeps: Sequence[Collection[Action]] = (),
) -> list[float]:
    """The same of the schedule, if all stages are equal, a summary costs its positions, and messages take no time.

    Args:
        summary_group: of how many micro-batches a summary is.
        keeps: of each stage, the actions that keep their graphs.
    """
    costs = Costs(summary=settings.summary_share * summary_group)
    schedule = pipeline_schedule(stages, segments, micro_batches, mode=settings.mode, summary_group=summary_group)
    return simulate(
        schedule, Machine.uniform(costs, stages, recomputes_early=True, kept_graphs=keeps), settings.mode
    ).bubbles


def simulated_bubbles(
    by_stage: list[dict[str, float]],
    windows: int,
    segments: int,
    micro_batches: int,
    summary_group: int,
    settings: MemorySettings,
    keeps: Sequence[Collection[Action]],
) -> list[float]:
    """The same of the schedule with what its actions take on each stage, by its measured phases (a head makes the last
    stage slower)."""
    actions = segments * micro_batches
    costs = [
        costs_of({name: seconds / windows for name, seconds in phases.items()}, actions, summary_group, kept, settings)
        for phases, kept in zip(by_stage, keeps, strict=True)
    ]
    schedule = pipeline_schedule(len(costs), segments, micro_batches, mode=settings.mode, summary_group=summary_group)
    machine = Machine(costs, [Link()] * (len(costs) - 1), recomputes_early=True, kept_graphs=keeps)
    return simulate(schedule, machine, settings.mode).bubbles


def costs_of(
    phases: dict[str, float], actions: int, summary_group: int, kept: Collection[Action], settings: MemorySettings
) -> dict[tuple[Kind, bool], float]:
    """Seconds of a stage's actions: forward by their phases; backward by their positions, with what is read again.

    Args:
        phases: seconds of a window's.
        actions: segments of all micro-batches.
        summary_group: of how many of them a summary is.
        kept: the actions that are not read again.
    """
    share = summary_positions(settings) / settings.positions  # 0 where there are none
    forward = {
        Kind.SEGMENT: phases["forward"] / actions,
        Kind.SUMMARY: phases["summary"] / actions * summary_group,
        Kind.RECALL: phases["recall"] / actions,
    }
    again = phases["forward"] + phases["summary"] - sum(forward[action.kind] for action in kept)
    back = (phases["backward"] - again) / (actions * (1 + share))
    backward = {
        Kind.SEGMENT: forward[Kind.SEGMENT] + back,
        Kind.SUMMARY: forward[Kind.SUMMARY] + back * share * summary_group,
        Kind.RECALL: 0.0,
    }
    return {(kind, False): cost for kind, cost in forward.items()} | {(k, True): c for k, c in backward.items()}
