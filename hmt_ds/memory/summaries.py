"""Compute the retrieval queries (summaries) of several segments in batches; they depend on tokens, not on memories."""

from collections.abc import Callable

import torch
from torch import Tensor

from hmt_ds.memory.boundaries import RandomState
from hmt_ds.memory.recompute_plan import RecomputePlan
from hmt_ds.memory.segments import Summary, Window
from hmt_ds.memory.settings import MemorySettings


class Summaries:
    """The retrieval queries of consecutive segments, and the gradients that come back to them.

    A batch of queries is computed without a graph first, and recomputed with a graph once the gradients of all its
    queries are known. Batches whose backward pass comes first can keep their graph instead.

    Args:
        read: computes retrieval queries from tokens, on the model's device.
        window: the segments of all rows.
        first: index of the first segment that has anything to retrieve.
        plan: number of segments per batch, and number of batches that keep their autograd graph.
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
        """Compute the retrieval queries of a batch of segments, ``[batch, segments, memory_tokens, dim]``.

        Args:
            start: index of the batch's first segment.
        """
        part = self.window.summary(start, self.batches[start], self.before, self.settings).to(self.device)
        return self.read(part).unflatten(0, (-1, self.batches[start] - start))

    def query(self, n: int) -> Tensor | None:
        """Return segment n's retrieval query as an autograd leaf that collects a gradient; None without retrieval.

        Args:
            n: index of the segment.

        Returns:
            ``[batch, memory_tokens, dim]`` or None.
        """
        query = self.queries[n]
        return None if query is None else query.detach().requires_grad_()

    def push(self, n: int, gradient: Tensor | None, scale: float) -> None:
        """Store the gradient that segment n's backward pass gave its retrieval query.

        Args:
            n: index of the segment.
            gradient: ``[batch, memory_tokens, dim]``, multiplied by ``scale``; None stores nothing.
            scale: loss scale to divide by; 1 except in fp16.
        """
        if gradient is not None:
            self.gradients[n] = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale

    def pull(self, start: int) -> Tensor | None:
        """Return the dot product of a batch's retrieval queries and their gradients, to run the batch's backward pass
        from.

        Call this from the last segment to the first, after all segments of the batch have stored their gradients.

        Args:
            start: index of a segment.

        Returns:
            A scalar with a graph; None if no batch begins at segment ``start``.
        """
        if start not in self.batches:
            return None
        queries = self.graphs.pop(start, None)
        if queries is None:
            self.random[start].restore()
            queries = self.read_batch(start)
        gradients = torch.stack([self.gradients.pop(n) for n in range(start, self.batches[start])], dim=1)
        return (queries.to(gradients.dtype) * gradients).sum()
