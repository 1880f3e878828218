"""How much of a window can be kept: by what the first step took of the GPU's memory."""

from collections.abc import Callable
from typing import Any

import torch

from hmt_ds.memory import MemorySettings, Plan, Summary
from hmt_ds.parallel.distributed import smallest
from hmt_ds.parallel.settle import ComputeSettings

MARGIN = 0.9  # of the GPU's memory is planned with; the rest is for what differs between steps


class Room:
    """Decides what is kept of a window.

    The first step keeps one segment and measures it. From then on as many segments as fit keep their activations, and
    summaries are read in batches that are no larger. All ranks keep the same.
    """

    def __init__(self, compute: ComputeSettings, settings: MemorySettings, depth: int, device: torch.device):
        self.compute, self.settings, self.depth, self.device = compute, settings, depth, device
        self.segment = self.summary = 0  # bytes of the largest graph of each
        self.measured = device.type == "cpu"
        self.plan = self.bounded(1, 1, 0)

    def bounded(self, segments: int, batch: int, batches: int) -> Plan:
        """The plan that the recipe leaves of these numbers."""
        if self.compute.recompute in ("none", "selective"):
            segments, batches = self.depth, self.depth
        elif self.compute.recompute != "auto":
            segments, batches = 1, 0
        if isinstance(self.compute.summary_batch, int):
            batch = self.compute.summary_batch
        return Plan(min(segments, self.depth), min(batch, self.depth), batches)

    def watch(self, read: Callable[..., Any]) -> Callable[..., Any]:
        """The same reader; it measures how much memory its graphs take, until that is known."""
        if self.measured:
            return read
        cuda = torch.get_device_module(self.device)

        def watched(part: Any, *arguments: Any, **options: Any) -> Any:
            before = cuda.memory_allocated()
            output = read(part, *arguments, **options)
            if torch.is_grad_enabled():
                kind = "summary" if isinstance(part, Summary) else "segment"
                setattr(self, kind, max(getattr(self, kind), cuda.memory_allocated() - before))
            return output

        return watched

    def learn(self) -> None:
        """Plan the next steps by the peak of the first, on the rank that has least room."""
        if self.measured:
            return
        self.measured = True
        cuda = torch.get_device_module(self.device)
        free, total = cuda.mem_get_info()
        others = total - free - cuda.memory_reserved()
        room = MARGIN * total - others - cuda.max_memory_allocated()
        if self.compute.cuda_graphs == "on":
            # each capture has a rehearsal, and what graphs have taken nobody else can use
            room -= 2 * self.segment
        single = self.summary / self.plan.summary_segments
        # large enough to fill the GPU; all of one size, for what is compiled or captured is so for a size
        batch = max(n for n in range(1, self.depth + 1) if self.depth % n == 0 and n * single <= max(room / 4, single))
        room -= batch * single
        segments = min(self.depth, 1 + max(0, int(room // max(self.segment, 1))))
        batches = max(0, int((room - (segments - 1) * self.segment) // max(batch * single, 1)))
        batches = batches if segments == self.depth else 0
        segments, batch, batches = map(int, smallest([segments, batch, batches], self.device))
        self.plan = self.bounded(segments, batch, batches)
