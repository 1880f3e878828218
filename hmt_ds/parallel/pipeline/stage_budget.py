"""Choose how many forward passes of a pipeline stage keep their autograd graphs, from measured GPU memory."""

import math

from hmt_ds.parallel.activation_budget import ActivationBudget
from hmt_ds.parallel.pipeline.schedule import Action, Kind, graphs_to_keep


class StageBudget(ActivationBudget):
    """Chooses, from measured GPU memory, which forward passes of a pipeline stage keep their autograd graphs.

    In the first steps, one of which is measured, no graph is kept. Afterwards the last forward passes, whose backward
    passes come first, keep their graphs as far as the memory left by the measured peak allows; the others stash their
    inputs and are recomputed. Every stage decides for itself.

    Attributes:
        free_bytes: bytes of GPU memory for graphs; 0 before a step was measured.
    """

    def plan_for(self, depth: int) -> None:
        """Restart the choice of kept autograd graphs, for windows of another number of segments: keep none until a step
        is measured.

        Args:
            depth: number of segments of a window.
        """
        super().plan_for(depth)
        self.free_bytes = math.inf if self.compute.recompute in ("none", "selective") else 0.0

    def step_done(self) -> None:
        """Count a finished optimizer step; after the measured one, compute how many bytes autograd graphs may take from
        now on."""
        if self.is_measured_step and self.compute.recompute == "auto":
            # The peak contains one graph, that of a recomputed pass. Kept graphs are freed before the first pass is
            # recomputed, so one of them may take its place.
            self.free_bytes = self.bytes_left(self.peak) + self.segment_bytes
        self.step += self.counts

    def choose_graphs(self, order: list[Action]) -> frozenset[Action]:
        """Return the forward passes that keep their autograd graphs, as many as fit into memory; all others are
        recomputed.

        Args:
            order: the stage's forward and backward passes, in order.
        """
        if self.free_bytes <= 0:
            return frozenset()
        return graphs_to_keep(
            order, {Kind.SEGMENT: self.segment_bytes, Kind.SUMMARY: self.summary_bytes}, self.free_bytes
        )
