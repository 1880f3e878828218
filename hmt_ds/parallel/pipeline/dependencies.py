"""Dependencies of a pipeline schedule: which forward or backward passes a pass waits for, and which stage receives its
result.

Imports no torch, so that ``hmt-ds plan`` starts quickly.
"""

from hmt_ds.parallel.pipeline.schedule import Action, Kind, forward_of, micro_batches_of


def dependencies(
    action: Action, stage: int, stages: int, segments: int, mode: str, summary_group: int = 1
) -> list[tuple[int, Action]]:
    """Return the forward and backward passes that must be done before a pass of a pipeline schedule can start.

    Args:
        action: the pass.
        stage: index of the stage that runs it.
        stages: number of stages.
        segments: number of segments that the schedule covers.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
        summary_group: number of micro-batches that one summary pass (which computes retrieval queries) covers.

    Returns:
        Pairs of a stage's index and a pass of that stage.
    """
    kind, n, b, last = action.kind, action.segment, action.micro_batch, stages - 1
    if not action.backward:
        if kind == Kind.RECALL:
            queries = [(last, Action(Kind.SUMMARY, n, b // summary_group))] if mode == "hmt" else []
            return queries + ([(last, Action(Kind.SEGMENT, n - 1, b))] if n else [])
        if stage:
            return [(stage - 1, action)]
        return [(last, Action(Kind.RECALL, n, b))] if kind == Kind.SEGMENT and mode != "backbone" else []
    if kind == Kind.RECALL:
        return [(0, Action(Kind.SEGMENT, n, b, backward=True))]
    own = [(stage, forward_of(action))]
    if stage < last:
        return [*own, (stage + 1, action)]
    if kind == Kind.SUMMARY:
        # the gradients of its queries, one from the recall of each of its micro-batches
        recalls = [Action(Kind.RECALL, n, b, backward=True) for b in micro_batches_of(action, summary_group)]
        return own + [(last, recall) for recall in recalls]
    if n + 1 == segments or mode == "backbone":
        return own
    # the gradient of M_n, to which the next segment's recall is the last to add
    return [*own, (last, Action(Kind.RECALL, n + 1, b, backward=True))]


def destination(action: Action, stage: int, stages: int, mode: str) -> int | None:
    """Return the index of the pipeline stage that receives the result of a pass; None if nothing is sent.

    Args:
        action: the forward or backward pass.
        stage: index of the stage that runs it.
        stages: number of stages.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
    """
    if action.kind == Kind.RECALL:
        to = stages - 1 if action.backward else 0
    elif not action.backward:
        to = min(stage + 1, stages - 1)
    elif stage:
        to = stage - 1
    else:
        to = stages - 1 if action.kind == Kind.SEGMENT and mode != "backbone" else 0
    return None if to == stage else to
