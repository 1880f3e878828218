"""Search for the fastest layout over GPUs that fits, and explain why each other kind of layout is worse."""

from collections.abc import Iterator

from hmt_ds.planning.activations import GIB
from hmt_ds.planning.cluster import Fleet
from hmt_ds.planning.estimate import Estimate, estimate
from hmt_ds.planning.layout import Layout, Work

MAX_ACTIONS = 20_000  # stages x segments x micro-batches of a simulated schedule, so that a search takes seconds
WAYS = (1, 2, 4)  # micro-batches per pipeline stage


def candidates(work: Work, fleet: Fleet) -> Iterator[Layout]:
    """Yield every layout of a run over some GPUs that the search compares.

    They are ZeRO-2, ZeRO-3 (also with offloading), and pipelines with ZeRO-1 and each possible number of stages, each
    with every possible number of rows at a time.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        fleet: type and number of GPUs, nodes and network.
    """
    rows_per_rank = max(1, work.rows // fleet.count)
    for rows in divisors(rows_per_rank):
        for stage in (2, 3) if work.can_shard else (2,):
            yield Layout(stage, "step", rows)
            for recompute in ("segment", "segment+layer"):
                yield Layout(stage, "segment", rows, recompute=recompute)
        yield Layout(2, "step", rows, offloaded=1.0)
        if work.can_shard:
            yield Layout(3, "segment", rows, recompute="segment+layer", offloaded=1.0, offloads_weights=True)
    for stages in stage_counts(work, fleet) if work.can_pipeline else ():
        yield from pipelines(work, fleet, stages)


def pipelines(work: Work, fleet: Fleet, stages: int) -> Iterator[Layout]:
    """Yield the layouts with a given number of pipeline stages, one for each size and number of micro-batches.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        fleet: type and number of GPUs, nodes and network.
        stages: number of pipeline stages.
    """
    rows_per_pipeline = max(1, work.rows * stages // fleet.count)
    for rows in divisors(rows_per_pipeline):
        for count in (stages * way for way in WAYS):
            fits = rows_per_pipeline % (rows * count) == 0
            if fits and stages * work.depth * count <= MAX_ACTIONS:
                yield Layout(1, "step", rows, stages, count)


def stage_counts(work: Work, fleet: Fleet) -> Iterator[int]:
    """Yield the possible numbers of pipeline stages of a run.

    They divide the model's layers and the number of GPUs, and either divide the GPUs of a node or fill whole nodes.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        fleet: type and number of GPUs, nodes and network.
    """
    for stages in range(2, min(work.size.layers, fleet.count) + 1):
        straddles = fleet.per_node % stages and stages % fleet.per_node
        if not straddles and fleet.count % stages == 0 and work.size.layers % stages == 0:
            yield stages


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, ascending.

    Args:
        number: a positive integer.
    """
    return [n for n in range(1, number + 1) if number % n == 0]


def best_of_each_family(work: Work, fleet: Fleet) -> list[Estimate]:
    """Return the estimate of the best layout of each kind: first those that fit, fastest first, then the others,
    smallest first.

    Of all numbers of pipeline stages only the best is kept.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        fleet: type and number of GPUs, nodes and network.
    """
    best: dict[str, Estimate] = {}
    for layout in candidates(work, fleet):
        found, family = estimate(work, layout, fleet), "pipeline" if layout.stages > 1 else layout.family
        if family not in best or order(found) < order(best[family]):
            best[family] = found
    return sorted(best.values(), key=order)


def order(found: Estimate) -> tuple[bool, float]:
    """Return a sort key for layouts: those that fit come first, fastest first, then the others, smallest first.

    Args:
        found: the estimate of the layout.
    """
    return (not found.memory.fits, found.time.seconds if found.memory.fits else found.memory.peak)


def why_it_loses(found: Estimate, best: Estimate) -> str:
    """Explain in a few words why a layout is worse than the best one.

    Args:
        found: the estimate of the layout.
        best: the estimate of the best layout.

    Returns:
        The largest part of memory (GiB) if the layout does not fit, else the activity that takes more seconds; empty
        for the best layout.
    """
    memory = found.memory
    if memory.host > memory.host_most:
        return f"does not fit: {memory.host / GIB:,.0f} of {memory.host_most / GIB:,.0f} GiB on a host (--host-memory)"
    if not memory.fits:
        part = max(memory.parts, key=lambda name: memory.parts[name])
        size = memory.parts[part] / GIB
        kind = "tight" if memory.tight else "does not fit"
        return f"{kind}: {memory.peak / GIB:,.0f} of {memory.most / GIB:,.0f} GiB, {part} {size:,.0f}"
    if not best.memory.fits or found is best:
        return ""
    names = sorted(found.time.parts)
    excess = {name: found.time.parts[name] - best.time.parts.get(name, 0.0) for name in names}
    part = max(names, key=lambda name: excess[name])
    slower = found.time.seconds / best.time.seconds - 1
    return f"{slower:.0%} slower: {part} {excess[part]:+.2f} s" if slower >= 0.005 else "as fast"
