"""Executes the lists of a ring's stages as the executor does, without arithmetic: what is sent, received and kept."""

from collections import deque

from hmt_ds.parallel.pipeline.schedule import Item, Kind

SUMMARY, RECALL, MAIN = Kind.SUMMARY, Kind.RECALL, Kind.MAIN


class Stage:
    """Executes one stage's list. It knows what an item reads and writes, and nothing of times.

    Sending never blocks. A channel gives messages in the order in which they were sent, and the next one must be the
    one that is wanted: the receiver posts its receives in the sender's order.
    """

    def __init__(self, number: int, stages: int, items: list[Item], mode: str, channels: dict, together: int):
        self.together = together
        self.number, self.items, self.mode, self.channels = number, deque(items), mode, channels
        self.first, self.last, self.ends = number == 0, number == stages - 1, (0, stages - 1)
        self.here: set = set()  # what lies on this stage: inputs kept, queries, memories, prompts, gradients

    def step(self) -> bool:
        """Do the next item; False if something is not there yet."""
        item = self.items[0]
        name = (item.segment, item.micro_batch)
        work = {MAIN: self.main, SUMMARY: self.summary, RECALL: self.recall}[item.kind]
        done = work(*name, item.backward)
        if done:
            self.items.popleft()
        return done

    def take(self, message: tuple, *way) -> bool:
        """Receive a message, or use what lies here."""
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
        """Send, or leave it here."""
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
                ready = self.take(("activation", MAIN, n, b), me - 1, me)
            if ready:
                self.give(("input", MAIN, n, b))
                self.give(("memory", n, b)) if self.last else self.give(("activation", MAIN, n, b), me, me + 1)
            return ready
        if self.last:
            ends = n == self.segments - 1 or self.mode == "backbone"
            ready = ends or self.take(("memory gradient", n, b))
        else:
            ready = self.take(("activation gradient", MAIN, n, b), me + 1, me)
        if ready:
            assert self.take(("input", MAIN, n, b))
            if not self.first:
                self.give(("activation gradient", MAIN, n, b), me, me - 1)
            elif self.mode != "backbone":
                self.give(("prompt gradient", n, b), first, last)
        return ready

    def summary(self, n: int, b: int, backward: bool) -> bool:
        me, parts = self.number, range(b * self.together, (b + 1) * self.together)
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


def execute(schedule: list[list[Item]], segments: int, mode: str, together: int) -> tuple[list[Stage], dict]:
    """Run all stages until none can go on."""
    channels: dict = {}
    stages = [Stage(p, len(schedule), items, mode, channels, together) for p, items in enumerate(schedule)]
    for stage in stages:
        stage.segments = segments
    moved = True
    while moved:
        moved = False
        for stage in stages:
            while stage.items and stage.step():
                moved = True
    return stages, channels
