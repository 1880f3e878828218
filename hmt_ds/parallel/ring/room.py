"""How many items of a stage keep their graphs: by what a step takes of the GPU's memory."""

import math
from typing import Any

from hmt_ds.parallel.ring.schedule import Item, Kind, live_items
from hmt_ds.parallel.room import Room


class RingRoom(Room):
    """As :class:`Room`, for a stage, whose window is a list of items.

    The items whose backward pass comes first, those that are read last, keep their graphs, as far as they fit beside
    the measured step, which keeps none. The others keep their inputs and are read once more. Every stage plans for
    itself.

    Attributes:
        spare: bytes for graphs.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.spare = math.inf if self.compute.recompute in ("none", "selective") else 0.0

    def step_done(self) -> None:
        """Plan the next steps by the measured one."""
        if self.measures and self.compute.recompute == "auto":
            self.spare = self.beside(self.peak)
        self.step += 1

    def keeps(self, order: list[Item]) -> frozenset[Item]:
        """Those of a window's items (all with their backward passes) that keep their graphs."""
        read = [item for item in order if not item.backward and item.kind != Kind.RECALL]
        kept: list[Item] = []
        if self.spare <= 0:
            return frozenset()
        if live_items(order) < len(read):  # first read, first backward: so many graphs stand at a time
            return frozenset(read if live_items(order) * self.segment <= self.spare else [])
        left = self.spare
        for item in reversed(read):
            left -= self.summary if item.kind == Kind.SUMMARY else self.segment
            if left < 0:
                break
            kept.append(item)
        return frozenset(kept)
