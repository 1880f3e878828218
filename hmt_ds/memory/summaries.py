"""The summaries of a window's segments, computed ahead in batches: they depend on the tokens alone, not on any
memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from hmt_ds.memory.boundaries import RandomState
from hmt_ds.memory.recompute_plan import RecomputePlan
from hmt_ds.memory.segments import Summary, Window
from hmt_ds.memory.settings import MemorySettings


class Summaries:
    """The summary queries of a window's segments, and the gradients that come back to them.

    A batch of summaries is computed without a graph first, keeping only its queries, and recomputed with a graph once
    the gradients of all its queries are known. Batches whose backward pass comes first can keep their graph instead.

    Args:
        read: computes queries from a summary's tokens, on the model's device.
        window: the segments of all rows.
        first: index of the first segment that has anything to recall.
        plan: number of segments per batch, and number of batches that keep their graph.
        device: the model's device.
        before: ``[batch, sensory_tokens]``, the last token ids before the window.
    """

    def __init__(
        self,
        read: Callable[[Summary], Tensor],
        settings: MemorySettings,
        window: Window,
        first: int,
        plan: RecomputePlan,
        device: torch.device,
        before: Tensor,
    ):
        self.read, self.settings, self.window, self.device, self.before = read, settings, window, device, before
        starts = range(first, len(window), plan.summary_segments)
        self.batches = {start: min(start + plan.summary_segments, len(window)) for start in starts}
        self.queries: list[Tensor | None] = [None] * first
        self.gradients: dict[int, Tensor] = {}
        self.random: dict[int, RandomState] = {}
        self.graphs: dict[int, Tensor] = {}
        kept = list(self.batches)[max(0, len(self.batches) - plan.kept_summaries) :]
        for start in self.batches:
            self.random[start] = RandomState(device)
            with torch.set_grad_enabled(start in kept):
                queries = self.read_batch(start)
            if start in kept:
                self.graphs[start] = queries
            self.queries += queries.detach().unbind(dim=1)

    def read_batch(self, start: int) -> Tensor:
        """Compute the queries of the batch whose first segment is ``start``: ``[batch, segments, memory_tokens,
        dim]``."""
        part = self.window.summary(start, self.batches[start], self.before, self.settings).to(self.device)
        return self.read(part).unflatten(0, (-1, self.batches[start] - start))

    def query(self, n: int) -> Tensor | None:
        """Return segment n's query ``[batch, memory_tokens, dim]`` as a leaf that collects a gradient; None without
        recall."""
        query = self.queries[n]
        return None if query is None else query.detach().requires_grad_()

    def push(self, n: int, gradient: Tensor | None, scale: float) -> None:
        """Store the gradient that segment n sent to its summary query.

        Args:
            n: index of the segment.
            gradient: ``[batch, memory_tokens, dim]``, multiplied by ``scale``; None stores nothing.
            scale: loss scale to divide by; 1 except in fp16.
        """
        if gradient is not None:
            self.gradients[n] = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale

    def pull(self, start: int) -> Tensor | None:
        """Return <q, g>, queries times gradients, summed over the batch whose first segment is ``start``, for its
        backward pass.

        Call this from the last segment to the first, after all segments of the batch have stored their gradients.

        Returns:
            A scalar with a graph; None if no batch begins at ``start``.
        """
        if start not in self.batches:
            return None
        queries = self.graphs.pop(start, None)
        if queries is None:
            self.random[start].restore()
            queries = self.read_batch(start)
        gradients = torch.stack([self.gradients.pop(n) for n in range(start, self.batches[start])], dim=1)
        return (queries.to(gradients.dtype) * gradients).sum()
