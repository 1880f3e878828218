"""Simulate a pipeline schedule: when each stage's passes start and end, how long stages are idle, what they stash.

Imports no torch, so that ``hmt-ds plan`` starts quickly.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from hmt_ds.parallel.pipeline.dependencies import dependencies, destination
from hmt_ds.parallel.pipeline.schedule import (
    Action,
    Costs,
    Kind,
    forward_of,
    peak_live_inputs,
)

Durations = Mapping[tuple[Kind, bool], float]  # of an action, by its kind and whether it is a backward pass


def durations(costs: Costs) -> dict[tuple[Kind, bool], float]:
    """Return the durations of a pipeline's passes, by kind of pass and whether it is a backward pass.

    Args:
        costs: durations of passes and messages; the result has their unit.
    """
    forward = {Kind.SEGMENT: costs.segment, Kind.SUMMARY: costs.summary, Kind.RECALL: costs.recall}
    factors = {False: 1.0, True: costs.backward}
    return {(kind, way): time * factor for kind, time in forward.items() for way, factor in factors.items()}


@dataclass(frozen=True)
class Link:
    """A network link between two pipeline stages, equally fast in both directions.

    Attributes:
        latency: seconds until a message's first byte arrives.
        bandwidth: bytes per second in each direction. A message waits until earlier ones have left.
    """

    latency: float = 0.0
    bandwidth: float = math.inf


@dataclass(frozen=True)
class Machine:
    """The pipeline stages and links that a schedule is simulated on.

    Attributes:
        stages: durations of each stage's passes, in seconds or any other unit of time.
        links: the link between stage p and stage p + 1, for all stages but the last.
        wraparound: the link between the last stage and the first.
        message_bytes: bytes of the activations that a pass sends to the next stage, by kind of pass (``segment``,
            ``summary`` or ``recall``); gradients have the same size, and so has the input that a stage stores for the
            backward pass of a segment or summary.
        recomputes_early: whether a backward pass recomputes before its gradient arrives, as in training. (The lower
            bound on a schedule's time assumes that it waits.)
        kept_graphs: for each stage, the forward passes that keep their autograd graphs and are not recomputed.
    """

    stages: Sequence[Durations]
    links: Sequence[Link]
    wraparound: Link = Link()
    message_bytes: Mapping[Kind, float] = field(default_factory=dict)
    recomputes_early: bool = False
    kept_graphs: Sequence[Collection[Action]] = ()

    @classmethod
    def uniform(
        cls,
        costs: Costs,
        stages: int,
        *,
        recomputes_early: bool = False,
        kept_graphs: Sequence[Collection[Action]] = (),
    ) -> "Machine":
        """Return a machine of equally fast stages, with links of unlimited bandwidth.

        Args:
            costs: durations of passes and messages, in any unit of time.
            stages: number of stages.
            recomputes_early: whether a backward pass recomputes before its gradient arrives.
            kept_graphs: for each stage, the forward passes that keep their autograd graphs; empty if all are
                recomputed.
        """
        links, wraparound = [Link(costs.link)] * (stages - 1), Link(costs.wraparound)
        return cls(
            [durations(costs)] * stages,
            links,
            wraparound,
            recomputes_early=recomputes_early,
            kept_graphs=kept_graphs,
        )

    def recomputation(self, action: Action, stage: int) -> float:
        """Return how long a pass recomputes activations, in the unit of the machine's durations.

        0 for a forward pass, and for the backward pass of one whose autograd graph was kept.

        Args:
            action: the pass.
            stage: index of the stage that runs it.
        """
        kept = self.kept_graphs and forward_of(action) in self.kept_graphs[stage]
        return self.stages[stage][action.kind, False] if action.backward and not kept else 0.0

    def duration(self, action: Action, stage: int) -> float:
        """Return how long the pass ``action`` of stage ``stage`` (an index) takes, in the unit of the machine's
        durations."""
        seconds = self.stages[stage][action.kind, action.backward]
        if not action.backward:
            return seconds
        return seconds - (self.stages[stage][action.kind, False] - self.recomputation(action, stage))

    def head_start(self, action: Action, stage: int) -> float:
        """Return how long a pass can run before its last message must have arrived: a backward pass recomputes first.

        Args:
            action: the pass.
            stage: index of the stage that runs it.
        """
        return self.recomputation(action, stage) if self.recomputes_early else 0.0

    def link(self, action: Action, stage: int, to: int) -> Link:
        """Return the network link that carries a pass's result from one stage to another.

        Args:
            action: the pass.
            stage, to: index of the sending and of the receiving stage.
        """
        wraps = action.kind == Kind.RECALL or (action.backward and to > stage)
        return self.wraparound if wraps else self.links[min(stage, to)]


@dataclass(frozen=True)
class TimedAction:
    """A pass of a simulated pipeline schedule with its start and end, in the unit of the simulated durations.

    Attributes:
        action: the pass.
        start, stop: when the pass starts and ends, since the simulated step began.
    """

    action: Action
    start: float
    stop: float


@dataclass(frozen=True)
class Timeline:
    """A simulated optimizer step of a pipeline, in the unit of the simulated durations, such as seconds.

    Attributes:
        stages: the passes of each stage, each with its start and end since the step began.
        stashed_inputs: peak number of stashed inputs, by stage.
        stashed_bytes: peak bytes of stashed inputs, by stage.
        after_window: time that the gradient reduction and the optimizer step take after the last pass.
    """

    stages: list[list[TimedAction]]
    stashed_inputs: list[int]
    stashed_bytes: list[float]
    after_window: float = 0.0

    @cached_property
    def window_time(self) -> float:
        """Time from the start of the simulated optimizer step until the last forward or backward pass is done."""
        return max(actions[-1].stop for actions in self.stages)

    @property
    def time(self) -> float:
        """Time of the whole simulated optimizer step, gradient reduction included."""
        return self.window_time + self.after_window

    @property
    def bubbles(self) -> list[float]:
        """The pipeline bubble of each stage: the fraction (0 to 1) of the time until the last pass in which the stage
        is idle."""
        busy = [sum(timed.stop - timed.start for timed in actions) for actions in self.stages]
        return [1 - seconds / self.window_time for seconds in busy]


class Simulation:
    """Simulates a pipeline schedule: each stage runs its passes in order, each as soon as its dependencies are met.

    Sending takes no stage's time.

    Args:
        schedule: each stage's passes in order.
        machine: durations and links; all times are in its unit, such as seconds.
        mode: memory mode of the schedule: ``hmt``, ``rmt`` or ``backbone``.
    """

    def __init__(self, schedule: list[list[Action]], machine: Machine, mode: str):
        self.schedule, self.machine, self.mode = schedule, machine, mode
        self.count = len(schedule)
        self.segments = 1 + max(action.segment for action in schedule[0])
        passes = {action.kind: 1 + action.micro_batch for action in sorted(schedule[0])}
        self.summary_group = passes[Kind.SEGMENT] // passes.get(Kind.SUMMARY, passes[Kind.SEGMENT])
        self.timed: list[list[TimedAction]] = [[] for _ in schedule]
        self.done: list[dict[Action, float]] = [{} for _ in schedule]
        self.arrived: list[dict[Action, float]] = [{} for _ in schedule]
        self.link_free: dict[tuple[int, int], float] = {}  # when the last message from one stage to another has left

    def run(self) -> list[list[TimedAction]]:
        """Simulate all passes of the schedule; return each stage's passes with their start and end.

        Raises:
            ValueError: the schedule has a deadlock.
        """
        runnable = deque(range(self.count))
        while runnable:
            runnable += self.advance(runnable.popleft())
        if any(len(timed) < len(actions) for timed, actions in zip(self.timed, self.schedule, strict=True)):
            raise ValueError("deadlock: the stages of the schedule wait for each other: reorder their passes")
        return self.timed

    def advance(self, stage: int) -> set[int]:
        """Simulate passes of one stage until one has to wait for a message.

        Args:
            stage: index of the stage.

        Returns:
            The indices of the stages that messages were sent to.
        """
        timed, receivers = self.timed[stage], set()
        for action in self.schedule[stage][len(timed) :]:
            ready = self.ready(action, stage)
            if ready is None:
                break
            # An action has one contiguous span, so an early recomputation ends when the last message arrives.
            start = max(ready - self.machine.head_start(action, stage), timed[-1].stop if timed else 0.0)
            stop = start + self.machine.duration(action, stage)
            timed.append(TimedAction(action, start, stop))
            self.done[stage][action] = stop
            to = destination(action, stage, self.count, self.mode)
            if to is not None:
                self.arrived[to][action] = self.send(action, stage, to, stop)
                receivers.add(to)
        return receivers

    def ready(self, action: Action, stage: int) -> float | None:
        """Return the time at which all dependencies of a pass are met; None if some dependencies have not been
        simulated yet.

        Args:
            action: the pass.
            stage: index of the stage that runs it.
        """
        latest = 0.0
        for at, needed in dependencies(action, stage, self.count, self.segments, self.mode, self.summary_group):
            when = (self.done if at == stage else self.arrived)[stage].get(needed)
            if when is None:
                return None
            latest = max(latest, when)
        return latest

    def send(self, action: Action, stage: int, to: int, now: float) -> float:
        """Simulate sending a pass's result to another stage; return when it arrives, since the simulated step began.

        Args:
            action: the pass.
            stage, to: index of the sending and of the receiving stage.
            now: time at which the pass ends.
        """
        link = self.machine.link(action, stage, to)
        seconds = self.machine.message_bytes.get(action.kind, 0.0) / link.bandwidth
        left = self.link_free[stage, to] = max(now, self.link_free.get((stage, to), 0.0)) + seconds
        return left + link.latency


def simulate(schedule: list[list[Action]], machine: Machine, mode: str = "hmt", after_window: float = 0.0) -> Timeline:
    """Simulate an optimizer step of a pipeline: all passes over one truncated-BPTT window, then reduction and
    optimizer.

    Args:
        schedule: each stage's passes in order, such as from ``pipeline_schedule``.
        machine: durations and links.
        mode: memory mode: ``hmt``, ``rmt`` or ``backbone``.
        after_window: time of the gradient reduction and the optimizer step, in the unit of the machine's durations.

    Raises:
        ValueError: the schedule has a deadlock.
    """
    timed = Simulation(schedule, machine, mode).run()
    stashed_bytes = [peak_stashed_bytes(actions, machine.message_bytes) for actions in schedule]
    return Timeline(timed, [peak_live_inputs(actions) for actions in schedule], stashed_bytes, after_window)


def peak_stashed_bytes(actions: list[Action], message_bytes: Mapping[Kind, float]) -> float:
    """Return the peak bytes of the inputs that a pipeline stage stashes, each from its forward to its backward pass.

    Args:
        actions: the stage's passes, in order.
        message_bytes: bytes of an input, by kind of pass.
    """
    if not any(action.backward for action in actions):
        return 0.0
    passes = [action for action in actions if action.kind != Kind.RECALL]
    return max(accumulate(message_bytes.get(action.kind, 0.0) * (-1 if action.backward else 1) for action in passes))
