"""How many items of a stage keep their graphs: by what a step takes of the GPU's memory."""

import math
from typing import Any

from hmt_ds.parallel.activation_budget import ActivationBudget
from hmt_ds.parallel.pipeline.schedule import Item, Kind, graphs_kept


class StageBudget(ActivationBudget):
    """As :class:`ActivationBudget`, for a stage, whose window is a list of items.

    The items that are read last, whose backward pass comes first, keep their graphs as far as they fit beside a
    measured step, which keeps none. The others keep their inputs and are read once more. Every stage plans for itself.

    Attributes:
        spare: bytes for graphs; none before a step was measured.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.spare = math.inf if self.compute.recompute in ("none", "selective") else 0.0

    def step_done(self) -> None:
        """Plan the next steps by the measured one."""
        if self.measures and self.compute.recompute == "auto":
            # one graph is in the peak; kept ones are gone when the first item is read again
            self.spare = self.beside(self.peak) + self.segment
        self.step += 1

    def keeps(self, order: list[Item]) -> frozenset[Item]:
        """Those of a window's items that keep their graphs."""
        if self.spare <= 0:
            return frozenset()
        return graphs_kept(order, {Kind.MAIN: self.segment, Kind.SUMMARY: self.summary}, self.spare)
