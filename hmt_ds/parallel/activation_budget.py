"""How much of a window can be kept: by what a step takes of the GPU's memory."""

from collections.abc import Callable
from typing import Any

import torch

from hmt_ds.distributed.process_group import smallest
from hmt_ds.memory import MemorySettings, RecomputePlan, Summary
from hmt_ds.parallel.compute_choice import ComputeSettings

MARGIN = 0.92  # of the GPU's memory is planned with; the rest is for what differs between steps
MEASURED = 2  # the step that is measured; in the first, optimizer states may be missing, and compilers work
CAPTURED = MEASURED + 2  # the step whose readings go into CUDA graphs; the one before it compiles what was planned


class ActivationBudget:
    """Decides what is kept of a window.

    The first steps keep one segment. When one of them was measured, as many segments keep their activations as fit
    beside all else, and summaries are read in larger batches. All ranks keep the same.
    """

    def __init__(self, compute: ComputeSettings, settings: MemorySettings, depth: int, device: torch.device):
        self.compute, self.settings, self.depth, self.device = compute, settings, depth, device
        self.segment = self.summary = 0  # bytes of the largest graph of each
        self.step, self.peak, self.peak_behind = 1, 0, 0
        # at first, batches of summaries that are no larger than a segment
        self.plan = self.bounded(1, max(n for n in self.divisors if n == 1 or n * settings.summary_share <= 1), 0)

    @property
    def divisors(self) -> list[int]:
        """Sizes of batches that are all alike: what is compiled or captured is so for a size."""
        return [n for n in range(1, self.depth + 1) if self.depth % n == 0]

    @property
    def measures(self) -> bool:
        """Whether the present step is the measured one. (On CPUs none is: there the plan stays as it is.)"""
        return self.device.type != "cpu" and self.step == MEASURED

    @property
    def settled_after(self) -> int:
        """Steps after which all is as it stays: planned, compiled, and captured if it is to be."""
        if self.device.type == "cpu":
            return 0
        return CAPTURED if self.compute.cuda_graphs == "always" else CAPTURED - 1

    def bounded(self, segments: int, batch: int, batches: int) -> RecomputePlan:
        """The plan that the recipe leaves of these numbers."""
        if self.compute.recompute in ("none", "selective"):
            segments, batches = self.depth, self.depth
        elif self.compute.recompute != "auto":
            segments, batches = 1, 0
        if isinstance(self.compute.summary_batch, int):
            batch = self.compute.summary_batch
        return RecomputePlan(min(segments, self.depth), min(batch, self.depth), batches)

    def watch(self, read: Callable[..., Any]) -> Callable[..., Any]:
        """The reader of a step; where the step is measured, one that notes how much memory its graphs take."""
        if not self.measures:
            return read
        cuda = torch.get_device_module(self.device)

        def watched(part: Any, *arguments: Any, **options: Any) -> Any:
            before = cuda.memory_allocated()
            output = read(part, *arguments, **options)
            if torch.is_grad_enabled():
                kind = "summary" if isinstance(part, Summary) else "segment"
                setattr(self, kind, max(getattr(self, kind), cuda.memory_allocated() - before))
            return output

        cuda.reset_peak_memory_stats()
        return watched

    def backward_done(self) -> None:
        """All backward passes of a step are done: their peak, and that of the reduction and the optimizer behind them,
        are measured apart."""
        if self.measures:
            cuda = torch.get_device_module(self.device)
            self.peak = cuda.max_memory_allocated()
            cuda.reset_peak_memory_stats()

    def step_done(self) -> None:
        """Plan the next steps by the measured one, on the rank that has least room."""
        if self.measures:
            self.peak_behind = torch.get_device_module(self.device).max_memory_allocated()
            self.plan = self.bounded(*map(int, smallest(self.what_fits(), self.device)))
        self.step += 1

    def what_fits(self) -> list[int]:
        """Segments that keep their activations, summaries in a batch, and batches that keep theirs."""
        graphs, peak = self.compute.cuda_graphs == "always", self.peak
        if graphs:  # what they have taken nobody else can use, and one segment is in the peak of all
            peak = max(peak, self.peak_behind + self.segment)
        room = self.beside(peak)
        single = self.summary / self.plan.summary_segments
        if graphs:
            room -= 2 * self.segment  # each capture has a rehearsal
            batch = self.batch_in(room / 4)
            room -= batch * single
            segments = self.segments_in(room)
        else:
            segments = self.segments_in(room)
            # a batch goes backward when the graphs of its segments are gone
            batch = self.batch_in(segments * self.segment)
        left = room - (segments - 1) * self.segment
        batches = max(0, int(left // max(batch * single, 1))) if segments == self.depth else 0
        return [segments, batch, batches]

    def beside(self, peak: int) -> float:
        """Bytes of the GPU's memory that are free when so many are taken, less a margin."""
        total = torch.get_device_module(self.device).mem_get_info()[1]
        return MARGIN * total - outside_torch(self.device) - peak

    def batch_in(self, room: float) -> int:
        """How many summaries are read at once where so many bytes may be taken, if the recipe does not say it."""
        if isinstance(self.compute.summary_batch, int):
            return self.plan.summary_segments
        single = self.summary / self.plan.summary_segments
        return max(n for n in self.divisors if n * single <= max(room, single))

    def segments_in(self, room: float) -> int:
        """How many segments keep their activations in so many bytes; one has its place already."""
        return min(self.depth, 1 + max(0, int(room // max(self.segment, 1))))


def outside_torch(device: torch.device) -> int:
    """Bytes of a GPU's memory that torch's allocator does not have: CUDA's own, NCCL's, other processes'."""
    cuda = torch.get_device_module(device)
    free, total = cuda.mem_get_info()
    return int(total - free - cuda.memory_reserved())
