"""What a ring pipeline's schedule takes: a simulation, and a time that no schedule can beat.

Standard library only, and so is what it imports.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from hmt_ds.parallel.pipeline.schedule import Costs, Item, Kind, live_items, needs, receiver

Durations = Mapping[tuple[Kind, bool], float]  # of an item, by its kind and whether it is a backward pass


def durations(costs: Costs) -> dict[tuple[Kind, bool], float]:
    """What each kind of item takes on a stage."""
    forward = {Kind.MAIN: costs.main, Kind.SUMMARY: costs.summary, Kind.RECALL: costs.recall}
    factors = {False: 1.0, True: costs.backward}
    return {(kind, way): time * factor for kind, time in forward.items() for way, factor in factors.items()}


@dataclass(frozen=True)
class Link:
    """A way between two stages, as fast in both directions.

    Attributes:
        latency: seconds until the first byte is there.
        bandwidth: bytes per second, each way. A message waits until those before it have left.
    """

    latency: float = 0.0
    bandwidth: float = math.inf


@dataclass(frozen=True)
class Machine:
    """What a schedule runs on.

    Attributes:
        stages: the durations of each stage's items.
        links: the way from stage p to p + 1 and back, for all stages but the last.
        ring: the way from the last stage to the first and back.
        message_bytes: what a message has, by the kind of the item that sends it; a gradient has as many. For summaries
            segments this is also what a stage keeps of each, its input.
        computes_ahead: whether a backward pass computes again before its gradient is there, as the executor does. The
            lower bound is for passes that wait for it first.
        keeps: of each stage, the items that keep their graphs and are not computed again.
    """

    stages: Sequence[Durations]
    links: Sequence[Link]
    ring: Link = Link()
    message_bytes: Mapping[Kind, float] = field(default_factory=dict)
    computes_ahead: bool = False
    keeps: Sequence[Collection[Item]] = ()

    @classmethod
    def uniform(cls, costs: Costs, stages: int, **options: Any) -> "Machine":
        """Equal stages, links without a width."""
        links, ring = [Link(costs.link)] * (stages - 1), Link(costs.ring)
        return cls([durations(costs)] * stages, links, ring, **options)

    def again(self, item: Item, stage: int) -> float:
        """How much of a backward pass is its item's forward pass once more."""
        kept = self.keeps and Item(item.kind, item.segment, item.micro_batch) in self.keeps[stage]
        return self.stages[stage][item.kind, False] if item.backward and not kept else 0.0

    def takes(self, item: Item, stage: int) -> float:
        """What an item takes on a stage."""
        seconds = self.stages[stage][item.kind, item.backward]
        return seconds - (self.stages[stage][item.kind, False] - self.again(item, stage) if item.backward else 0.0)

    def ahead(self, item: Item, stage: int) -> float:
        """How long an item can be worked on before all that it needs is there."""
        return self.again(item, stage) if self.computes_ahead else 0.0

    def way(self, item: Item, stage: int, to: int) -> Link:
        """The link that an item's result takes. (Of two stages, the ring is a second one.)"""
        rings = item.kind == Kind.RECALL or (item.backward and to > stage)
        return self.ring if rings else self.links[min(stage, to)]


@dataclass(frozen=True)
class Bar:
    """An item and its time."""

    item: Item
    start: float
    stop: float


@dataclass(frozen=True)
class Timeline:
    """A simulated step.

    Attributes:
        stages: the bars of each stage.
        kept_items: inputs that each stage keeps at its peak.
        kept_bytes: bytes of them.
        at_the_end: time behind the last item: gradients are reduced, the optimizer steps.
    """

    stages: list[list[Bar]]
    kept_items: list[int]
    kept_bytes: list[float]
    at_the_end: float = 0.0

    @cached_property
    def window_time(self) -> float:
        """Until the last item is done."""
        return max(bars[-1].stop for bars in self.stages)

    @property
    def time(self) -> float:
        """Of the whole step."""
        return self.window_time + self.at_the_end

    @property
    def bubbles(self) -> list[float]:
        """The share of the window's time that each stage is idle."""
        busy = [sum(bar.stop - bar.start for bar in bars) for bars in self.stages]
        return [1 - seconds / self.window_time for seconds in busy]


class Simulation:
    """Runs each stage's items in their order, each as soon as what it needs is there. Sending takes no stage's time."""

    def __init__(self, schedule: list[list[Item]], machine: Machine, mode: str):
        self.schedule, self.machine, self.mode = schedule, machine, mode
        self.count = len(schedule)
        self.segments = 1 + max(item.segment for item in schedule[0])
        parts = {item.kind: 1 + item.micro_batch for item in sorted(schedule[0])}
        self.together = parts[Kind.MAIN] // parts.get(Kind.SUMMARY, parts[Kind.MAIN])
        self.bars: list[list[Bar]] = [[] for _ in schedule]
        self.done: list[dict[Item, float]] = [{} for _ in schedule]
        self.arrived: list[dict[Item, float]] = [{} for _ in schedule]
        self.sent: dict[tuple[int, int], float] = {}  # when the last message from one stage to another has left

    def run(self) -> list[list[Bar]]:
        """All bars.

        Raises:
            ValueError: if the stages wait for each other.
        """
        waiting = deque(range(self.count))
        while waiting:
            waiting += self.advance(waiting.popleft())
        if any(len(bars) < len(items) for bars, items in zip(self.bars, self.schedule, strict=True)):
            raise ValueError("the schedule never ends: its stages wait for each other")
        return self.bars

    def advance(self, stage: int) -> set[int]:
        """Run a stage as far as it goes; returns who was sent something."""
        bars, woken = self.bars[stage], set()
        for item in self.schedule[stage][len(bars) :]:
            ready = self.ready(item, stage)
            if ready is None:
                break
            # (a bar is drawn in one piece, so what is computed ahead stands right before the rest)
            start = max(ready - self.machine.ahead(item, stage), bars[-1].stop if bars else 0.0)
            stop = start + self.machine.takes(item, stage)
            bars.append(Bar(item, start, stop))
            self.done[stage][item] = stop
            to = receiver(item, stage, self.count, self.mode)
            if to is not None:
                self.arrived[to][item] = self.send(item, stage, to, stop)
                woken.add(to)
        return woken

    def ready(self, item: Item, stage: int) -> float | None:
        """When all that an item needs is there, as far as is known."""
        latest = 0.0
        for at, needed in needs(item, stage, self.count, self.segments, self.mode, self.together):
            when = (self.done if at == stage else self.arrived)[stage].get(needed)
            if when is None:
                return None
            latest = max(latest, when)
        return latest

    def send(self, item: Item, stage: int, to: int, now: float) -> float:
        """When an item's result arrives."""
        link = self.machine.way(item, stage, to)
        seconds = self.machine.message_bytes.get(item.kind, 0.0) / link.bandwidth
        left = self.sent[stage, to] = max(now, self.sent.get((stage, to), 0.0)) + seconds
        return left + link.latency


def simulate(schedule: list[list[Item]], machine: Machine, mode: str = "hmt", at_the_end: float = 0.0) -> Timeline:
    """The time of a step, and what is kept.

    Args:
        schedule: from :func:`pipeline_schedule`, or any other lists of items.
        at_the_end: time of the reduction and of the optimizer.

    Raises:
        ValueError: if the stages wait for each other.
    """
    bars = Simulation(schedule, machine, mode).run()
    kept_bytes = [peak_kept_bytes(items, machine.message_bytes) for items in schedule]
    return Timeline(bars, [live_items(items) for items in schedule], kept_bytes, at_the_end)


def peak_kept_bytes(items: list[Item], message_bytes: Mapping[Kind, float]) -> float:
    """Bytes of the inputs that a stage keeps at its peak, each from its forward to its backward pass."""
    if not any(item.backward for item in items):
        return 0.0
    inputs = [item for item in items if item.kind != Kind.RECALL]
    return max(accumulate(message_bytes.get(item.kind, 0.0) * (-1 if item.backward else 1) for item in inputs))


def lower_bound(
    stages: int, segments: int, micro_batches: int, *, mode: str = "hmt", backward: bool = True, costs: Costs
) -> float:
    """A time that no schedule of equal stages beats; the proof is in parallel/pipeline/README.md."""
    shape = (stages, segments, micro_batches, mode)
    back = costs.backward
    forward = half_bound(*shape, costs.main, costs.summary, costs.recall, costs.link, costs.ring)
    if not backward:
        return forward
    scaled = (costs.main * back, costs.summary * back, costs.recall * back)
    return forward + half_bound(*shape, *scaled, costs.link, costs.ring)


def half_bound(
    stages: int, segments: int, batches: int, mode: str, f: float, s: float, c: float, link: float, ring: float
) -> float:
    """The share of the forward passes in the bound; that of the backward passes is the same with their times."""
    others, ring = stages - 1, ring * (stages > 1)
    if mode == "backbone":
        return segments * batches * f + others * (f + link)
    s *= mode == "hmt"
    work, summaries = segments * batches * (f + s), segments * batches * s
    # until the first prompt is on the first stage, and from one prompt of a micro-batch to its next
    first = c + ring + (stages * s + others * link if mode == "hmt" else 0.0)
    around = c + ring + stages * f + others * link
    wait = max(0.0, first - summaries + (segments - 1) * max(0.0, around - batches * f))
    # without summaries, the first recalls are made while the last stage waits for its first item
    recalls, arrival = (segments, s) if mode == "hmt" else (segments - 1, f)
    return work + max(others * (f + link) + wait, others * (arrival + link) + recalls * batches * c)
