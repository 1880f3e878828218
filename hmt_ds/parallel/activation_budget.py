"""Choose from measured GPU memory how many segments keep their activations and how many are recomputed in the backward
pass."""

from collections.abc import Callable
from typing import Any

import torch

from hmt_ds.distributed.process_group import all_reduce_min
from hmt_ds.memory import MemorySettings, RecomputePlan, Summary
from hmt_ds.parallel.settings import ComputeSettings

MARGIN = 0.92  # share of the GPU's memory to plan with; the rest is for differences between steps
MEASURED = 2  # the measured step; in the first, optimizer states may be missing and compilers take memory
CAPTURED = MEASURED + 2  # the step that captures CUDA graphs; the one before compiles what the plan asks for

Forward = Callable[..., Any]  # an HMT's forward pass: a segment gives a SegmentOutput, a summary its queries


class ActivationBudget:
    """Chooses, from measured GPU memory, which segments keep their activations and which are recomputed (checkpointed).

    A window is the chunk of segments that one truncated-BPTT pass covers; its length is called depth. In the first
    steps only one segment keeps its activations. The second step's peak memory is measured; from then on as many
    segments keep their activations as fit into the GPU's memory, and summary passes (which compute the retrieval
    queries) run in larger batches. All ranks use the same plan. When the depth changes, measuring starts over. Steps
    with shorter windows than the plan is for (a random depth) use the plan, but are neither measured nor counted as
    first steps.

    Attributes:
        plan: how many segments of the coming step keep their activations.
        depth: number of segments of the windows that the plan is for.
        counts_from: least number of segments of a window whose step is counted in ``step``.
        step: number of the coming step, from 1, among steps whose windows have at least ``counts_from`` segments.
        segment_bytes: bytes of the largest autograd graph of one segment, measured in step 2.
        summary_bytes: bytes of the largest autograd graph of one batch of summary passes, measured in step 2.
        peak: peak allocated bytes during the forward and backward passes of step 2's last window.
        peak_after: peak allocated bytes during step 2's gradient reduction and optimizer step.
    """

    def __init__(self, compute: ComputeSettings, settings: MemorySettings, depth: int, device: torch.device):
        self.compute, self.settings, self.device = compute, settings, device
        self.plan_for(depth)

    def plan_for(self, depth: int) -> None:
        """Restart the choice of recomputed segments, for windows (truncated-BPTT chunks) of another number of segments.

        Memory measured on shorter windows does not hold for longer ones, which carry more state between segments. The
        first plan depends on the depth alone, not on earlier steps: recomputation fixes the order in which dropout
        draws random numbers, and a resumed run must draw the same ones.

        Args:
            depth: number of segments of a window.
        """
        self.depth = self.counts_from = depth
        self.counts = True
        self.segment_bytes = self.summary_bytes = 0
        self.step, self.peak, self.peak_after = 1, 0, 0
        # batches of summaries that are no larger than a segment
        batch = max(n for n in self.batch_sizes if n == 1 or n * self.settings.summary_share <= 1)
        self.plan = self.within_recipe(1, batch, 0)

    def begin_step(self, segments: int) -> None:
        """Begin an optimizer step, and note whether its windows are long enough for it to count as one of the first
        steps.

        Args:
            segments: number of segments in each of the step's truncated-BPTT windows, at most the current depth.
        """
        self.counts = segments >= self.counts_from

    @property
    def batch_sizes(self) -> list[int]:
        """Return the allowed numbers of segments whose retrieval queries are computed in one batch.

        They are the divisors of the number of segments that gradients flow through, so that all batches have one shape.
        """
        return [n for n in range(1, self.depth + 1) if self.depth % n == 0]

    @property
    def is_measured_step(self) -> bool:
        """Whether the coming optimizer step is the one (the second) in which peak GPU memory is measured; False on
        CPUs, where torch does not count allocations."""
        return self.device.type != "cpu" and self.counts and self.step == MEASURED

    @property
    def warm_up_steps(self) -> int:
        """Number of first optimizer steps that are slower than later ones: memory is measured, shapes are compiled and
        CUDA graphs are captured."""
        if self.device.type == "cpu":
            return 0
        return CAPTURED if self.compute.cuda_graphs == "always" else CAPTURED - 1

    def within_recipe(self, kept_segments: int, summary_segments: int, kept_summaries: int) -> RecomputePlan:
        """Return a plan of what is recomputed, with the given numbers, except where the recipe sets a number itself.

        Args:
            kept_segments: number of last segments that keep their activations for the backward pass.
            summary_segments: number of segments whose summary passes (for retrieval queries) run in one batch.
            kept_summaries: number of batches of summary passes that keep their activations.
        """
        if self.compute.recompute in ("none", "selective"):
            kept_segments, kept_summaries = self.depth, self.depth
        elif self.compute.recompute != "auto":
            kept_segments, kept_summaries = 1, 0
        if isinstance(self.compute.summary_batch, int):
            summary_segments = self.compute.summary_batch
        return RecomputePlan(min(kept_segments, self.depth), min(summary_segments, self.depth), kept_summaries)

    def measure(self, forward: Forward) -> Forward:
        """Wrap a forward pass so that in the measured (second) step it also records the bytes of its autograd graph.

        In all other steps the forward pass is returned unchanged.

        Args:
            forward: forward pass of a segment, or of a batch of summaries (the tokens of retrieval queries).
        """
        if not self.is_measured_step:
            return forward
        cuda = torch.get_device_module(self.device)

        def measured(part: object, *arguments: object, **options: object) -> object:
            before = cuda.memory_allocated()
            output = forward(part, *arguments, **options)
            if torch.is_grad_enabled():
                kind = "summary_bytes" if isinstance(part, Summary) else "segment_bytes"
                setattr(self, kind, max(getattr(self, kind), cuda.memory_allocated() - before))
            return output

        cuda.reset_peak_memory_stats()
        return measured

    def backward_done(self) -> None:
        """Record the peak memory of forward and backward passes, after the last backward pass of a step.

        Reduction and optimizer run after activations are freed, so their peak is measured separately; only memory of
        CUDA graphs, which is never freed, adds to it.
        """
        if self.is_measured_step:
            cuda = torch.get_device_module(self.device)
            self.peak = cuda.max_memory_allocated()
            cuda.reset_peak_memory_stats()

    def step_done(self) -> None:
        """Count a finished optimizer step; after the measured (second) one, choose how many segments keep their
        activations, limited by the rank with the least free memory."""
        if self.is_measured_step:
            self.peak_after = torch.get_device_module(self.device).max_memory_allocated()
            self.plan = self.within_recipe(*map(int, all_reduce_min(self.largest_plan(), self.device)))
        self.step += self.counts

    def largest_plan(self) -> list[int]:
        """Return the plan that recomputes the fewest segments and still fits into this rank's GPU memory.

        Returns:
            ``[kept_segments, summary_segments, kept_summaries]``: how many last segments keep their activations, how
            many segments' summary passes (for retrieval queries) run in one batch, and how many such batches keep their
            activations.
        """
        graphs, peak = self.compute.cuda_graphs == "always", self.peak
        if graphs:
            # Captured memory stays allocated during the reduction and the optimizer's step. The peak of the windows
            # contains one segment already, so it is added to the other peak before the two are compared.
            peak = max(peak, self.peak_after + self.segment_bytes)
        left = self.bytes_left(peak)
        single = self.summary_bytes / self.plan.summary_segments
        if graphs:
            left -= 2 * self.segment_bytes  # a capture is preceded by a warm-up pass, which keeps its memory too
            summary_segments = self.batch_within(left / 4)
            left -= summary_segments * single
            kept_segments = self.segments_within(left)
        else:
            kept_segments = self.segments_within(left)
            # A batch of summaries runs backward when the graphs of its own segments are freed: it may take their place.
            summary_segments = self.batch_within(kept_segments * self.segment_bytes)
        left -= (kept_segments - 1) * self.segment_bytes
        kept_summaries = 0
        if single and kept_segments == self.depth:  # modes rmt and backbone run no summaries
            batches = -(-self.depth // summary_segments)
            kept_summaries = min(batches, max(0, int(left // (summary_segments * single))))
        return [kept_segments, summary_segments, kept_summaries]

    def bytes_left(self, peak: int) -> float:
        """Return the bytes of GPU memory that stay free while ``peak`` bytes are allocated by torch.

        A safety margin and the memory of CUDA, NCCL and other processes are subtracted.

        Args:
            peak: peak allocated bytes.
        """
        total = torch.get_device_module(self.device).mem_get_info()[1]
        return MARGIN * total - outside_torch(self.device) - peak

    def batch_within(self, size: float) -> int:
        """Return the largest number of segments whose retrieval queries, computed in one batch, take at most ``size``
        bytes.

        Args:
            size: bytes of GPU memory for the batch's autograd graph.
        """
        if isinstance(self.compute.summary_batch, int):
            return self.plan.summary_segments
        single = self.summary_bytes / self.plan.summary_segments
        return max(n for n in self.batch_sizes if n * single <= max(size, single))

    def segments_within(self, size: float) -> int:
        """Return how many segments can keep their activations, given ``size`` bytes more than the measured step used.

        Args:
            size: free bytes of GPU memory.
        """
        return min(self.depth, 1 + max(0, int(size // max(self.segment_bytes, 1))))


def outside_torch(device: torch.device) -> int:
    """Return the bytes of a GPU's memory that are allocated outside of torch: by CUDA, NCCL and other processes.

    Args:
        device: the GPU.
    """
    cuda = torch.get_device_module(device)
    free, total = cuda.mem_get_info()
    return int(total - free - cuda.memory_reserved())
