"""The pipeline schedule: an ordered list of forward and backward passes for each stage, made before a run starts.

A micro-batch passes through all stages once per segment; the last stage then retrieves memories as a prompt and sends
it to the first stage, where the next segment begins.

Imports no torch, so that ``hmt-ds plan`` starts quickly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from hmt_ds.memory.settings import MODES


class Kind(StrEnum):
    """Kind of a pipeline pass over one segment of a micro-batch.

    Attributes:
        SUMMARY: runs the layers on the summary's tokens; on the last stage it yields the query q_n.
        RECALL: computes the prompt P_n from the query and the memories, on the last stage alone.
        SEGMENT: runs the layers on the segment between its prompts; on the last stage it yields the memory M_n and the
            loss.
    """

    SUMMARY = "summary"
    RECALL = "recall"
    SEGMENT = "segment"


# Longest summary pass over several micro-batches, in segment passes. Without sensory tokens two summaries take a little
# more than one segment, hence not exactly 1.
MAX_GROUP_COST = 1.1
LETTERS = {Kind.SUMMARY: "st", Kind.RECALL: "rq", Kind.SEGMENT: "FB"}


@dataclass(frozen=True, order=True, repr=False)
class Action:
    """One forward or backward pass of a pipeline stage over one segment of a micro-batch.

    It runs the layers on the segment or on its summary (the tokens of its retrieval query), or retrieves memories for
    it (recall). Printed as F2.0 (segment 2, micro-batch 0), s2.0 (summary), r2.0 (recall); the backward passes as B2.0,
    t2.0, q2.0.

    Attributes:
        kind: kind of the pass.
        segment: index of the segment.
        micro_batch: index of the micro-batch; for a summary, index of the group of micro-batches it covers.
        backward: whether it is the backward pass, which includes the recomputation of the forward pass.
    """

    kind: Kind
    segment: int
    micro_batch: int
    backward: bool = False

    def __repr__(self) -> str:
        return f"{LETTERS[self.kind][self.backward]}{self.segment}.{self.micro_batch}"


@dataclass(frozen=True)
class Costs:
    """Durations of a pipeline's passes and messages, all in the same arbitrary unit of time.

    Attributes:
        segment: duration of the forward pass of one segment through the layers of one stage.
        summary: duration of the forward pass that computes one segment's retrieval query, through the layers of one
            stage.
        backward: duration of each backward pass as a multiple of its forward pass; 3 with recomputation.
        recall: duration of selecting memories for one segment, on the last stage.
        link: duration of a message between neighbouring stages, in either direction.
        wraparound: duration of a message between the last and the first stage, in either direction.
    """

    segment: float = 1.0
    summary: float = 0.5
    backward: float = 3.0
    recall: float = 0.0
    link: float = 0.0
    wraparound: float = 0.0


UNIT_COSTS = Costs()


def pipeline_schedule(
    stages: int,
    segments: int,
    micro_batches: int,
    *,
    mode: str = "hmt",
    backward: bool = True,
    summary_group: int = 1,
    costs: Costs = UNIT_COSTS,
) -> list[list[Action]]:
    """Return the forward and backward passes of each pipeline stage over a number of segments, in order.

    With memory, all stages run the forward passes in one order and the backward passes in the reverse order, so the
    stashed stage inputs form a stack. Without memory no backward pass has to wait for later segments, and each stage
    runs 1F1B, which stashes fewer inputs.

    Args:
        stages: number of stages.
        segments: number of consecutive segments that gradients flow through.
        micro_batches: number of micro-batches. With at least as many as stages, no stage waits for the prompt from the
            last stage.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none). Memories
            of earlier segments exist, so segment 0 retrieves like all others.
        backward: False for evaluation: forward passes alone.
        summary_group: number of micro-batches that one summary pass (which computes retrieval queries) covers.
        costs: durations. Without memory, slow links call for more warm-up passes; with memory the order does not depend
            on durations.

    Raises:
        ValueError: a number is below 1, the mode is unknown, or ``summary_group`` does not divide the micro-batches.
    """
    for name, number in {"stages": stages, "segments": segments, "micro-batches": micro_batches}.items():
        if number < 1:
            raise ValueError(f"{name}: must be at least 1, got {number}")
    if mode not in MODES:
        raise ValueError(f"mode: must be one of {', '.join(MODES)}, got {mode!r}")
    if micro_batches % summary_group:
        raise ValueError(f"summary_group: must divide the {micro_batches} micro-batches, got {summary_group}")
    common = forward_order(segments, micro_batches, mode, summary_group)
    on_last = common if mode == "backbone" else insert_recalls(common, segments, micro_batches, mode, summary_group)
    orders = [*[common] * (stages - 1), on_last]
    if not backward:
        return [list(order) for order in orders]
    if mode == "backbone":
        return [one_forward_one_backward(order, warmup_passes(stages - 1 - p, costs)) for p, order in enumerate(orders)]
    # All forward passes come first: the backward pass of a segment needs the gradient of its memory, which only the
    # backward pass of the next segment computes. The reverse order is the one in which those gradients appear.
    return [order + [backward_of(action) for action in reversed(order)] for order in orders]


def summary_group_size(stages: int, segments: int, micro_batches: int, share: float) -> int:
    """Return how many micro-batches one summary pass (which computes retrieval queries) should cover.

    The pass should take about as long as a segment pass. One pass over twice the rows takes less than twice the time,
    and adds to the gradient accumulation buffers half as often. But larger groups must not make a stage idle: the first
    prompt exists after as many passes of a group as there are stages, and until then the first stage only has the
    summary passes of two segments to run.

    Args:
        stages: number of stages.
        segments: number of segments that the schedule covers.
        micro_batches: number of micro-batches.
        share: duration of one micro-batch's summary pass, as a fraction of a segment pass.
    """
    sizes = [n for n in range(2, micro_batches + 1) if micro_batches % n == 0]
    ready = min(2, segments) * micro_batches
    return max((n for n in sizes if n * share <= MAX_GROUP_COST and n * stages <= ready), default=1)


def forward_order(segments: int, micro_batches: int, mode: str, summary_group: int = 1) -> list[Action]:
    """Return the forward passes that all pipeline stages run, in order, summaries (s) two segments ahead of segments
    (F).

    With one micro-batch: s0 s1 F0 s2 F1 s3 F2 F3. A segment's retrieval query comes from its summary and must exist
    before retrieval; summaries fill the time in which a stage would otherwise wait for the prompt from the last stage.

    Args:
        segments: number of segments that the schedule covers.
        micro_batches: number of micro-batches.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
        summary_group: number of micro-batches per summary pass.
    """
    rounds = [(float(n), Kind.SEGMENT, n) for n in range(segments)]
    # sorted by these keys, the summary of segment n comes between segments n - 2 and n - 1
    if mode == "hmt":
        rounds += [(n - 1.5, Kind.SUMMARY, n) for n in range(segments)]
    passes = {Kind.SEGMENT: micro_batches, Kind.SUMMARY: micro_batches // summary_group}
    return [Action(kind, n, b) for _, kind, n in sorted(rounds) for b in range(passes[kind])]


def micro_batches_of(summary: Action, summary_group: int) -> range:
    """Return the indices of the micro-batches that one summary pass of a pipeline covers.

    A summary pass computes the retrieval queries of one segment.

    Args:
        summary: the summary pass.
        summary_group: micro-batches per summary pass.
    """
    return range(summary.micro_batch * summary_group, (summary.micro_batch + 1) * summary_group)


def insert_recalls(
    common: list[Action], segments: int, micro_batches: int, mode: str, summary_group: int
) -> list[Action]:
    """Return the last pipeline stage's forward passes: those of all stages, with each memory retrieval as early as
    possible.

    Args:
        common: the forward passes that all stages run, in order.
        segments: number of segments that the schedule covers.
        micro_batches: number of micro-batches.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
        summary_group: number of micro-batches that one summary pass (which computes retrieval queries) covers.
    """
    order = [Action(Kind.RECALL, 0, b) for b in range(micro_batches)] if mode == "rmt" else []
    for action in common:
        order.append(action)
        if action.kind == Kind.SUMMARY and action.segment == 0:
            order += [Action(Kind.RECALL, 0, b) for b in micro_batches_of(action, summary_group)]
        if action.kind == Kind.SEGMENT and action.segment + 1 < segments:
            order.append(Action(Kind.RECALL, action.segment + 1, action.micro_batch))
    return order


def backward_of(action: Action) -> Action:
    """Return the backward pass of a given forward pass.

    Args:
        action: the forward pass.
    """
    return Action(action.kind, action.segment, action.micro_batch, backward=True)


def forward_of(action: Action) -> Action:
    """Return the forward pass of a given backward pass.

    Args:
        action: the backward pass.
    """
    return Action(action.kind, action.segment, action.micro_batch)


def one_forward_one_backward(order: list[Action], warmup: int) -> list[Action]:
    """Return passes in 1F1B order: warm-up forward passes, alternating passes, then the remaining backward passes.

    Args:
        order: the forward passes, in order.
        warmup: number of forward passes before the first backward pass.
    """
    result = order[:warmup]
    for n, action in enumerate(order):
        result += [backward_of(action), *order[warmup + n : warmup + n + 1]]
    return result


def warmup_passes(later_stages: int, costs: Costs) -> int:
    """Return how many forward passes a pipeline stage runs before its first backward pass, in 1F1B order.

    One, and one more for each later stage. Where messages take time, enough more to fill a round trip, so that a stage
    finds its next input when it has finished the previous one.

    Args:
        later_stages: number of stages after this one.
        costs: durations of passes and messages.
    """
    return 1 + later_stages * (1 + math.ceil(2 * costs.link / (costs.segment * (1 + costs.backward))))


def peak_live_inputs(actions: list[Action]) -> int:
    """Return the peak number of inputs that a pipeline stage stashes, each from its forward to its backward pass.

    With memory, one per segment and micro-batch, and one per pass for retrieval queries; without memory as many as the
    stage has warm-up passes; 0 for forward passes alone. Queries kept for memory retrieval do not count.

    Args:
        actions: the stage's forward and backward passes, in order.
    """
    if not any(action.backward for action in actions):
        return 0
    return max(accumulate(-1 if action.backward else 1 for action in actions if action.kind != Kind.RECALL))


def graphs_to_keep(order: list[Action], sizes: Mapping[Kind, float], free_bytes: float) -> frozenset[Action]:
    """Choose the forward passes of a pipeline stage that keep their autograd graphs, so that nothing is recomputed for
    them.

    With memory the last forward passes are chosen, whose backward passes come first: their graphs live shortest.
    Without memory (1F1B) every graph lives equally long, so all are kept or none.

    Args:
        order: the stage's forward and backward passes, in order.
        sizes: bytes of a graph, by the kind of the forward pass.
        free_bytes: bytes for all kept graphs together.
    """
    passes = [action for action in order if action.kind != Kind.RECALL]
    forwards = [action for action in passes if not action.backward]
    if backward_of(forwards[-1]) != next(action for action in passes if action.backward):
        return frozenset(forwards if peak_live_inputs(order) * sizes[Kind.SEGMENT] <= free_bytes else [])
    totals = accumulate(sizes[action.kind] for action in reversed(forwards))
    return frozenset(action for action, total in zip(reversed(forwards), totals, strict=True) if total <= free_bytes)
