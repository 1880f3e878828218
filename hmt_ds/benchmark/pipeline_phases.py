"""What the stages of a ring do with the time of a step, as measured, beside their schedule."""

from collections.abc import Collection, Sequence
from typing import Any, cast

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import layers_of
from hmt_ds.distributed.process_group import from_all_ranks
from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.schedule import Costs, Item, Kind, pipeline_schedule
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.simulate import Link, Machine, simulate

WORK = ("summary", "recall", "forward", "backward")  # the phases of a window, but for waiting


def ring_numbers(
    executor: PipelineExecutor, windows: int, segments: int, phases: list[dict[str, float]]
) -> dict[str, Any]:
    """What a ring is, and its phases and bubbles by stage. All ranks call it.

    Args:
        windows: of the step whose phases were measured.
        segments: of each of them.
        phases: seconds of each rank's.
    """
    pipelines, parts = executor.data_ranks, executor.micro_batches
    module, name = layers_of(cast(CausalLM, executor.engine.module.backbone))
    by_stage = [mean(phases[first : first + pipelines]) for first in range(0, len(phases), pipelines)]
    keeps, together = keeps_of_stages(executor, segments), executor.together(segments, parts)
    shape = (segments, parts, together, executor.settings, keeps)
    return {
        "stages": executor.stages,
        "micro_batches": parts,
        "summaries_together": together,
        "layers": from_all_ranks(len(getattr(module, name)))[::pipelines],
        "phase_seconds": by_stage,
        "bubbles": measured_bubbles(by_stage),
        "schedule_bubbles": scheduled_bubbles(executor.stages, *shape),
        "simulated_bubbles": simulated_bubbles(by_stage, windows, *shape),
        "items": segments * (parts + parts // together * (executor.settings.mode == "hmt")),
        "kept_graphs": [len(kept) for kept in keeps],
    }


def keeps_of_stages(executor: PipelineExecutor, segments: int) -> list[frozenset[Item]]:
    """The items of a window that keep their graphs, of the first pipeline's stages. All ranks call it."""
    kept = executor.room.keeps(executor.order(segments, executor.settings.mode))
    return from_all_ranks(kept)[:: executor.data_ranks]


def repeated_positions_on_ring(
    settings: MemorySettings,
    keeps: Sequence[Collection[Item]],
    micro_batches: int,
    together: int,
    segments: int,
    *,
    layers_again: bool,
) -> float:
    """How many positions of one row of a window the layers read forward more than once, on the mean stage.

    Args:
        keeps: of each stage, the items that keep their graphs.
        together: of how many micro-batches a summary is.
        layers_again: whether each layer is read forward once more when it goes backward (segment+layer).
    """
    lengths = {Kind.MAIN: settings.positions, Kind.SUMMARY: summary_positions(settings)}
    every = segments * sum(lengths.values())
    rows = {Kind.MAIN: 1, Kind.SUMMARY: together}
    kept = sum(lengths[item.kind] * rows[item.kind] for stage in keeps for item in stage) / len(keeps) / micro_batches
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
    together: int,
    settings: MemorySettings,
    keeps: Sequence[Collection[Item]] = (),
) -> list[float]:
    """The same of the schedule, if all stages are equal, a summary costs its positions, and messages take no time.

    Args:
        together: of how many micro-batches a summary is.
        keeps: of each stage, the items that keep their graphs.
    """
    costs = Costs(summary=settings.summary_share * together)
    schedule = pipeline_schedule(stages, segments, micro_batches, mode=settings.mode, together=together)
    return simulate(schedule, Machine.uniform(costs, stages, computes_ahead=True, keeps=keeps), settings.mode).bubbles


def simulated_bubbles(
    by_stage: list[dict[str, float]],
    windows: int,
    segments: int,
    micro_batches: int,
    together: int,
    settings: MemorySettings,
    keeps: Sequence[Collection[Item]],
) -> list[float]:
    """The same of the schedule with what its items take on each stage, by its measured phases (a head makes the last
    stage slower)."""
    items = segments * micro_batches
    costs = [
        costs_of({name: seconds / windows for name, seconds in phases.items()}, items, together, kept, settings)
        for phases, kept in zip(by_stage, keeps, strict=True)
    ]
    schedule = pipeline_schedule(len(costs), segments, micro_batches, mode=settings.mode, together=together)
    machine = Machine(costs, [Link()] * (len(costs) - 1), computes_ahead=True, keeps=keeps)
    return simulate(schedule, machine, settings.mode).bubbles


def costs_of(
    phases: dict[str, float], items: int, together: int, kept: Collection[Item], settings: MemorySettings
) -> dict[tuple[Kind, bool], float]:
    """Seconds of a stage's items: forward by their phases; backward by their positions, with what is read again.

    Args:
        phases: seconds of a window's.
        items: segments of all micro-batches.
        together: of how many of them a summary is.
        kept: the items that are not read again.
    """
    share = summary_positions(settings) / settings.positions  # 0 where there are none
    forward = {
        Kind.MAIN: phases["forward"] / items,
        Kind.SUMMARY: phases["summary"] / items * together,
        Kind.RECALL: phases["recall"] / items,
    }
    again = phases["forward"] + phases["summary"] - sum(forward[item.kind] for item in kept)
    back = (phases["backward"] - again) / (items * (1 + share))
    backward = {
        Kind.MAIN: forward[Kind.MAIN] + back,
        Kind.SUMMARY: forward[Kind.SUMMARY] + back * share * together,
        Kind.RECALL: 0.0,
    }
    return {(kind, False): cost for kind, cost in forward.items()} | {(k, True): c for k, c in backward.items()}
