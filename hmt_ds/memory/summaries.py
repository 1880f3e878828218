"""The summaries of a window, read ahead in batches: they depend on the document alone, not on any memory.

Shapes: b batch, s segments of the window, m memory tokens, d embedding width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hmt_ds.memory.boundaries import RandomState
from hmt_ds.memory.recompute_plan import RecomputePlan
from hmt_ds.memory.segments import Summary, Window
from hmt_ds.memory.settings import MemorySettings


class Summaries:
    """The queries q_n of a window's segments, and the gradients that come back to them.

    A batch of summaries is read without a graph at first, and once more with one when the gradients of all its queries
    are known: queries are all that is kept of it. Batches whose backward pass comes first can keep their graph instead.

    Args:
        read: reads a summary on the model's device.
        first: the first segment that has anything to recall; the last has number s - 1.
        plan: how many segments a batch has, and how many batches keep their graph.
        device: the model's.
        before: ``[b, k]``, the last ids read before the window.
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
        """The queries of the batch that begins with that segment, ``[b, segments, m, d]``."""
        part = self.window.summary(start, self.batches[start], self.before, self.settings).to(self.device)
        return self.read(part).unflatten(0, (-1, self.batches[start] - start))

    def query(self, n: int) -> Tensor | None:
        """q_n ``[b, m, d]`` without its graph, ready to collect a gradient; None where nothing can be recalled."""
        query = self.queries[n]
        return None if query is None else query.detach().requires_grad_()

    def push(self, n: int, gradient: Tensor | None, scale: float) -> None:
        """Keep what segment n sends to its query, ``[b, m, d]``, multiplied by ``scale``."""
        if gradient is not None:
            self.gradients[n] = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale

    def pull(self, start: int) -> Tensor | None:
        """<q, g> over the batch that begins with that segment: the scalar to go backward from. None within a batch.

        Call it when all the batch's segments have sent their gradients, from the last batch to the first.
        """
        if start not in self.batches:
            return None
        queries = self.graphs.pop(start, None)
        if queries is None:
            self.random[start].restore()
            queries = self.read_batch(start)
        gradients = torch.stack([self.gradients.pop(n) for n in range(start, self.batches[start])], dim=1)
        return (queries.to(gradients.dtype) * gradients).sum()
