"""In which order the stages of a ring read a window: plain lists, made before anything runs.

A micro-batch goes through the stages once for each segment; from the last stage its recalled prompt goes to the first,
and begins the next segment there. The README beside this file has the bound that these orders are measured by.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

MODES = ("hmt", "rmt", "backbone")


class Kind(StrEnum):
    """What a stage does with a segment of a micro-batch.

    Attributes:
        SUMMARY: reads the summary's tokens. On the last stage that gives the query q_n.
        RECALL: makes the prompt P_n, on the last stage alone.
        MAIN: reads the segment between its prompts. On the last stage that gives the memory M_n and the loss.
    """

    SUMMARY = "summary"
    RECALL = "recall"
    MAIN = "main"


# main passes that summaries of several micro-batches take at most: without sensory tokens two are a little over one
LONGEST = 1.1
LETTERS = {Kind.SUMMARY: "st", Kind.RECALL: "rq", Kind.MAIN: "FB"}


@dataclass(frozen=True, order=True, repr=False)
class Item:
    """One piece of a stage's work; shown as F2.0 (main), s2.0 (summary), r2.0 (recall), backward B2.0, t2.0, q2.0.

    Attributes:
        kind: what is done.
        segment: of the window, from 0.
        micro_batch: from 0. Of a summary: which of the equal groups of micro-batches that are read together.
        backward: whether this is the backward pass, which reads the stage's input once more first.
    """

    kind: Kind
    segment: int
    micro_batch: int
    backward: bool = False

    def __repr__(self) -> str:
        return f"{LETTERS[self.kind][self.backward]}{self.segment}.{self.micro_batch}"


@dataclass(frozen=True)
class Costs:
    """What the items of a stage take, in any unit of time.

    Attributes:
        main, summary, recall: their forward passes.
        backward: a backward pass takes so many forward passes; 3 with the recomputation.
        link: from one stage to the next, or back.
        ring: from the last stage to the first, or back.
    """

    main: float = 1.0
    summary: float = 0.5
    backward: float = 3.0
    recall: float = 0.0
    link: float = 0.0
    ring: float = 0.0


UNIT = Costs()


def pipeline_schedule(
    stages: int,
    segments: int,
    micro_batches: int,
    *,
    mode: str = "hmt",
    backward: bool = True,
    together: int = 1,
    costs: Costs = UNIT,
) -> list[list[Item]]:
    """The items of each stage, in order.

    Every stage has the same order, and its backward passes mirror its forward passes: what was read last goes backward
    first, so kept inputs are a stack. Without memory nothing has to come back before a backward pass, and each stage
    alternates between the two as soon as it can (1F1B), which keeps fewer inputs.

    Args:
        segments: S, of the window.
        micro_batches: B, that are read side by side. From B = P on, the ring is never waited for.
        mode: of the memory. Memories are carried into the window, so segment 0 recalls as all others do.
        backward: False for evaluation: forward passes alone.
        together: of how many micro-batches a summary is, see :func:`summaries_together`.
        costs: without memory, slow links let earlier stages read further ahead. With memory the order is the same
            whatever they are.

    Raises:
        ValueError: a number below 1, an unknown mode, or micro-batches that are no whole groups.
    """
    for name, number in {"stages": stages, "segments": segments, "micro-batches": micro_batches}.items():
        if number < 1:
            raise ValueError(f"{name}: must be at least 1, got {number}")
    if mode not in MODES:
        raise ValueError(f"mode: must be one of {', '.join(MODES)}, got {mode}")
    if micro_batches % together:
        raise ValueError(f"together: must divide the {micro_batches} micro-batches, got {together}")
    through = forward_order(segments, micro_batches, mode, together)
    on_last = through if mode == "backbone" else with_recalls(through, segments, micro_batches, mode, together)
    orders = [*[through] * (stages - 1), on_last]
    if not backward:
        return [list(order) for order in orders]
    if mode == "backbone":
        return [alternating(order, read_ahead(stages - 1 - p, costs)) for p, order in enumerate(orders)]
    return [order + [gradient_of(item) for item in reversed(order)] for order in orders]


def summaries_together(stages: int, segments: int, micro_batches: int, share: float) -> int:
    """The summaries of how many micro-batches a stage reads as one item: as many as take about as long as a segment.

    Twice the rows take less than twice the time, and gradients are added to their sums half as often. But no stage may
    wait for it: a group's first prompt is there after P of its items, and until then the first stage has the summaries
    of two segments.

    Args:
        share: what a summary of one micro-batch takes of a main pass.
    """
    sizes = [n for n in range(2, micro_batches + 1) if micro_batches % n == 0]
    ready = min(2, segments) * micro_batches
    return max((n for n in sizes if n * share <= LONGEST and n * stages <= ready), default=1)


def forward_order(segments: int, micro_batches: int, mode: str, together: int = 1) -> list[Item]:
    """What goes through all stages: segment after segment, and summaries two segments ahead, s0 s1 F0 s2 F1 s3 F2 F3.

    So the summaries of a segment are there before it is read, and stand where a stage would wait for the ring.
    """
    rounds = [(float(n), Kind.MAIN, n) for n in range(segments)]
    if mode == "hmt":
        rounds += [(n - 1.5, Kind.SUMMARY, n) for n in range(segments)]
    parts = {Kind.MAIN: micro_batches, Kind.SUMMARY: micro_batches // together}
    return [Item(kind, n, b) for _, kind, n in sorted(rounds) for b in range(parts[kind])]


def micro_batches_of(item: Item, together: int) -> range:
    """The micro-batches that a summary is of."""
    return range(item.micro_batch * together, (item.micro_batch + 1) * together)


def with_recalls(through: list[Item], segments: int, micro_batches: int, mode: str, together: int) -> list[Item]:
    """The last stage's order: each recall as soon as all that it needs is there."""
    order = [Item(Kind.RECALL, 0, b) for b in range(micro_batches)] if mode == "rmt" else []
    for item in through:
        order.append(item)
        if item.kind == Kind.SUMMARY and item.segment == 0:
            order += [Item(Kind.RECALL, 0, b) for b in micro_batches_of(item, together)]
        if item.kind == Kind.MAIN and item.segment + 1 < segments:
            order.append(Item(Kind.RECALL, item.segment + 1, item.micro_batch))
    return order


def gradient_of(item: Item) -> Item:
    """The backward pass of a forward pass."""
    return Item(item.kind, item.segment, item.micro_batch, backward=True)


def alternating(order: list[Item], ahead: int) -> list[Item]:
    """So many forward passes, then one backward and one forward, and the other backward passes (1F1B)."""
    result = order[:ahead]
    for n, item in enumerate(order):
        result += [gradient_of(item), *order[ahead + n : ahead + n + 1]]
    return result


def read_ahead(behind: int, costs: Costs) -> int:
    """How many forward passes come before the first backward pass, by the number of stages behind.

    One more for each of them; and where messages take time, as many more as fill the way there and back, so that a
    stage finds its next input when it has finished the last.
    """
    return 1 + behind * (1 + math.ceil(2 * costs.link / (costs.main * (1 + costs.backward))))


def needs(item: Item, stage: int, stages: int, segments: int, mode: str, together: int = 1) -> list[tuple[int, Item]]:
    """What must be done before an item can be: pairs of a stage and its item."""
    kind, n, b, last = item.kind, item.segment, item.micro_batch, stages - 1
    if not item.backward:
        if kind == Kind.RECALL:
            queries = [(last, Item(Kind.SUMMARY, n, b // together))] if mode == "hmt" else []
            return queries + ([(last, Item(Kind.MAIN, n - 1, b))] if n else [])
        if stage:
            return [(stage - 1, item)]
        return [(last, Item(Kind.RECALL, n, b))] if kind == Kind.MAIN and mode != "backbone" else []
    if kind == Kind.RECALL:
        return [(0, Item(Kind.MAIN, n, b, backward=True))]
    own = [(stage, Item(kind, n, b))]
    if stage < last:
        return [*own, (stage + 1, item)]
    if kind == Kind.SUMMARY:
        prompts = [Item(Kind.RECALL, n, part, backward=True) for part in micro_batches_of(item, together)]
        return own + [(last, prompt) for prompt in prompts]
    if n + 1 == segments or mode == "backbone":
        return own
    return [*own, (last, Item(Kind.RECALL, n + 1, b, backward=True))]


def receiver(item: Item, stage: int, stages: int, mode: str) -> int | None:
    """The stage that an item's result is sent to; None where it stays, or is the end."""
    if item.kind == Kind.RECALL:
        to = stages - 1 if item.backward else 0
    elif not item.backward:
        to = min(stage + 1, stages - 1)
    elif stage:
        to = stage - 1
    else:
        to = stages - 1 if item.kind == Kind.MAIN and mode != "backbone" else 0
    return None if to == stage else to


def live_items(items: list[Item]) -> int:
    """How many inputs a stage keeps at most, each from its forward to its backward pass.

    One for each of the SB segments and, in mode hmt, for the items of their summaries; without memory so many as
    :func:`read_ahead` says, and SB at most. What a recall keeps, a query, is not counted. None for forward passes
    alone.
    """
    if not any(item.backward for item in items):
        return 0
    return max(accumulate(-1 if item.backward else 1 for item in items if item.kind != Kind.RECALL))


def graphs_kept(order: list[Item], sizes: Mapping[Kind, float], spare: float) -> frozenset[Item]:
    """Those of a stage's items that keep their graphs in so many bytes: the ones whose backward pass comes first.

    They are the last ones that are read. Without memory an item goes backward as many items later as all others: there
    it is all or none.

    Args:
        order: with backward passes.
        sizes: bytes of a graph, by the kind of its item.
    """
    items = [item for item in order if item.kind != Kind.RECALL]
    read = [item for item in items if not item.backward]
    if gradient_of(read[-1]) != next(item for item in items if item.backward):
        return frozenset(read if live_items(order) * sizes[Kind.MAIN] <= spare else [])
    taken = accumulate(sizes[item.kind] for item in reversed(read))
    return frozenset(item for item, total in zip(reversed(read), taken, strict=True) if total <= spare)
