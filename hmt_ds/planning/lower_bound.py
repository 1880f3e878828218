"""A lower bound on the time of any pipeline schedule.

Imports no torch, so that ``hmt-ds plan`` starts quickly.
"""

from hmt_ds.parallel.pipeline.schedule import Costs


def lower_bound(
    stages: int, segments: int, micro_batches: int, *, mode: str = "hmt", backward: bool = True, costs: Costs
) -> float:
    """Return a lower bound on the time of any pipeline schedule whose stages take equally long.

    Args:
        stages: number of stages.
        segments: number of segments that gradients flow through.
        micro_batches: number of micro-batches.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
        backward: False for forward passes alone.
        costs: durations of passes and messages, in any unit, which is the bound's too.
    """
    shape = (stages, segments, micro_batches, mode)
    back = costs.backward
    forward = half_bound(*shape, costs.segment, costs.summary, costs.recall, costs.link, costs.wraparound)
    if not backward:
        return forward
    scaled = (costs.segment * back, costs.summary * back, costs.recall * back)
    return forward + half_bound(*shape, *scaled, costs.link, costs.wraparound)


def half_bound(
    stages: int, segments: int, batches: int, mode: str, f: float, s: float, c: float, link: float, wraparound: float
) -> float:
    """Return a lower bound on the time of all forward, or all backward, passes of a pipeline, in the unit of the
    durations.

    Args:
        stages: number of stages.
        segments: number of segments that gradients flow through.
        batches: number of micro-batches.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
        f, s, c: durations of the passes over a segment, for its retrieval query, and for retrieval; all forward or all
            backward.
        link: duration of a message between neighbouring stages.
        wraparound: duration of a message between the last and the first stage.
    """
    others, wraparound = stages - 1, wraparound * (stages > 1)
    if mode == "backbone":
        return segments * batches * f + others * (f + link)
    s *= mode == "hmt"
    work, summaries = segments * batches * (f + s), segments * batches * s
    # until the first prompt reaches the first stage, and from one prompt of a micro-batch to its next
    first = c + wraparound + (stages * s + others * link if mode == "hmt" else 0.0)
    around = c + wraparound + stages * f + others * link
    wait = max(0.0, first - summaries + (segments - 1) * max(0.0, around - batches * f))
    # without summaries, the first recalls run while the last stage waits for its first input
    recalls, arrival = (segments, s) if mode == "hmt" else (segments - 1, f)
    return work + max(others * (f + link) + wait, others * (arrival + link) + recalls * batches * c)
