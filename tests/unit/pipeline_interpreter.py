"""Interpret schedules as the executor runs them, without tensors: messages sent and received, inputs stashed."""

from collections import deque

from hmt_ds.parallel.pipeline.schedule import Action, Kind

SUMMARY, RECALL, SEGMENT = Kind.SUMMARY, Kind.RECALL, Kind.SEGMENT


class Stage:
    """Runs one stage's actions. It knows what an action needs and produces, but no durations.

    Sends never block. A channel delivers messages in the order sent, and the next one must be the one needed: the
    receiver posts its receives in the sender's order.
    """

    def __init__(self, number: int, stages: int, actions: list[Action], mode: str, channels: dict, summary_group: int):
        self.summary_group = summary_group
        self.number, self.actions, self.mode, self.channels = number, deque(actions), mode, channels
        self.first, self.last, self.ends = number == 0, number == stages - 1, (0, stages - 1)
        self.here: set = set()  # on this stage: stashed inputs, queries, memories, prompts, gradients

    def step(self) -> bool:
        """Run the next action; False if something it needs is missing."""
        action = self.actions[0]
        name = (action.segment, action.micro_batch)
        work = {SEGMENT: self.main, SUMMARY: self.summary, RECALL: self.recall}[action.kind]
        done = work(*name, action.backward)
        if done:
            self.actions.popleft()
        return done

    def take(self, message: tuple, *way) -> bool:
        """Receive a message, or take it from this stage."""
        if len(way) == 2 and way[0] != way[1]:
            channel = self.channels.setdefault((message[0], *way), deque())
            if not channel:
                return False
            assert channel[0] == message, f"stage {self.number} wants {message}, next comes {channel[0]}"
            channel.popleft()
            return True
        if message not in self.here:
            return False
        self.here.remove(message)
        return True

    def give(self, message: tuple, *way) -> None:
        """Send a message, or leave it on this stage."""
        if len(way) == 2 and way[0] != way[1]:
            self.channels.setdefault((message[0], *way), deque()).append(message)
        else:
            assert message not in self.here
            self.here.add(message)

    def main(self, n: int, b: int, backward: bool) -> bool:
        me, (first, last) = self.number, self.ends
        if not backward:
            if self.first:
                ready = self.mode == "backbone" or self.take(("prompt", n, b), last, first)
            else:
                ready = self.take(("activation", SEGMENT, n, b), me - 1, me)
            if ready:
                self.give(("input", SEGMENT, n, b))
                self.give(("memory", n, b)) if self.last else self.give(("activation", SEGMENT, n, b), me, me + 1)
            return ready
        if self.last:
            ends = n == self.segments - 1 or self.mode == "backbone"
            ready = ends or self.take(("memory gradient", n, b))
        else:
            ready = self.take(("activation gradient", SEGMENT, n, b), me + 1, me)
        if ready:
            assert self.take(("input", SEGMENT, n, b))
            if not self.first:
                self.give(("activation gradient", SEGMENT, n, b), me, me - 1)
            elif self.mode != "backbone":
                self.give(("prompt gradient", n, b), first, last)
        return ready

    def summary(self, n: int, b: int, backward: bool) -> bool:
        me, parts = self.number, range(b * self.summary_group, (b + 1) * self.summary_group)
        if not backward:
            ready = self.first or self.take(("activation", SUMMARY, n, b), me - 1, me)
            if ready:
                self.give(("input", SUMMARY, n, b))
                if not self.last:
                    self.give(("activation", SUMMARY, n, b), me, me + 1)
                for part in parts if self.last else []:
                    self.give(("query", n, part))
            return ready
        if self.last:
            wanted = {("query gradient", n, part) for part in parts}
            ready = wanted <= self.here
            self.here -= wanted if ready else set()
        else:
            ready = self.take(("activation gradient", SUMMARY, n, b), me + 1, me)
        if ready:
            assert self.take(("input", SUMMARY, n, b))
            if not self.first:
                self.give(("activation gradient", SUMMARY, n, b), me, me - 1)
        return ready

    def recall(self, n: int, b: int, backward: bool) -> bool:
        first, last = self.ends
        assert self.last
        if not backward:
            wanted = [("memory", n - 1, b)] * (n > 0) + [("query", n, b)] * (self.mode == "hmt")
            ready = all(message in self.here for message in wanted)
            if ready:
                self.here -= set(wanted)
                self.give(("prompt", n, b), last, first)
            return ready
        ready = self.take(("prompt gradient", n, b), first, last)
        if ready:
            if n:
                self.give(("memory gradient", n - 1, b))
            if self.mode == "hmt":
                self.give(("query gradient", n, b))
        return ready


def execute(schedule: list[list[Action]], segments: int, mode: str, summary_group: int) -> tuple[list[Stage], dict]:
    """Run all stages until none can continue."""
    channels: dict = {}
    stages = [Stage(p, len(schedule), actions, mode, channels, summary_group) for p, actions in enumerate(schedule)]
    for stage in stages:
        stage.segments = segments
    moved = True
    while moved:
        moved = False
        for stage in stages:
            while stage.actions and stage.step():
                moved = True
    return stages, channels
