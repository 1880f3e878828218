"""Reading by CUDA graphs: a small backbone is bound by the launching of kernels, and a replay launches all at once.

All segments have one shape, and so have all batches of summaries. For each, the reading and its backward pass are
captured once and replayed. What a captured reading keeps for its backward pass lies in memory of its own, a slot; as
many slots are captured as segments keep their activations at a time.
"""

import gc
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hmt_ds.memory import Segment, SegmentOutput, Summary

Part = Segment | Summary
Read = Callable[..., Any]


class GraphedReader:
    """Reads like the function that it is made of.

    Gradients of weights must be summed by hooks into tensors that stay where they are, for these additions are captured
    too. The weights must stay where they are as well.

    Args:
        read: reads a segment or a summary; it must have run before, so that nothing is left to be compiled.
    """

    def __init__(self, read: Read):
        self.read = read
        self.complete = False  # after a whole step; a graph that is captured later could take memory that is in use
        self.slots: dict[Any, list[Slot]] = {}
        # Graphs that share a pool reuse each other's memory. Those of one kind are always replayed in the order of
        # their capture, and readings without a backward pass hold nothing between them.
        self.pools = {kind: torch.cuda.graph_pool_handle() for kind in (Segment, Summary, None)}
        # Autograd reuses a weight's node for as long as any graph has it, on the stream where it was made. So nothing
        # may be left of earlier graphs, and rehearsals and captures have one stream.
        gc.collect()
        self.stream = torch.cuda.Stream()
        # autograd makes a node of what has an input that wants a gradient; summaries have none
        self.anchor = torch.zeros((), requires_grad=True)

    def __call__(
        self,
        part: Part,
        memories: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        query: Tensor | None = None,
        with_loss: bool = True,
    ) -> Any:
        """As :meth:`hmt_ds.memory.HMT.forward`."""
        graph = torch.is_grad_enabled()
        given = [getattr(part, field.name) for field in fields(part)] + [memories, valid, query]
        shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in given)
        slots = self.slots.setdefault((type(part), shapes, graph, with_loss), [])
        slot = next((slot for slot in slots if not slot.busy), None)
        if slot is None and self.complete:
            arguments = (memories, valid) if memories is not None else ()
            return self.read(part, *arguments, query=query, with_loss=with_loss)
        if slot is None:
            slot = Slot(self.read, type(part), with_loss, self.pools[type(part) if graph else None], self.stream)
            slots.append(slot)
        if graph:
            return slot.outputs(Replay.apply(slot, self.anchor, memories, query, *given))
        return slot.outputs(slot.forward(given))


class Slot:
    """One captured reading, and its backward pass."""

    def __init__(self, read: Read, kind: type, with_loss: bool, pool: Any, stream: torch.cuda.Stream):
        self.read, self.kind, self.with_loss, self.pool, self.stream = read, kind, with_loss, pool, stream
        self.busy = False
        self.ahead: torch.cuda.CUDAGraph | None = None
        self.back: torch.cuda.CUDAGraph | None = None

    def outputs(self, tensors: Any) -> Any:
        """As the reader returns them."""
        return SegmentOutput(*tensors) if self.kind is Segment else tensors[0]

    def forward(self, given: list[Tensor | None]) -> tuple[Tensor, ...]:
        """Replay the reading on these inputs; returns copies."""
        if self.ahead is None:
            self.capture_forward(given)
        for own, new in zip(self.inputs, given, strict=True):
            if own is not None and new is not None:
                own.data.copy_(new)
        assert self.ahead is not None
        self.ahead.replay()
        return tuple(tensor.detach().clone() for tensor in self.results)

    def capture_forward(self, given: list[Tensor | None]) -> None:
        """Capture the reading."""
        self.inputs = [None if tensor is None else tensor.detach().clone() for tensor in given]
        *parts, memories, valid, query = self.inputs
        self.leaves = [t.requires_grad_() for t in (memories, query) if t is not None and torch.is_grad_enabled()]
        arguments = (self.kind(*parts),) if memories is None else (self.kind(*parts), memories, valid)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # once for nothing, so that all is set up
            self.read(*arguments, query=query, with_loss=self.with_loss)
        torch.cuda.current_stream().wait_stream(self.stream)
        self.ahead = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.ahead, self.pool, self.stream):
            output = self.read(*arguments, query=query, with_loss=self.with_loss)
        self.results = [tensor for tensor in output if tensor is not None] if self.kind is Segment else [output]

    def backward(self, gradients: list[Tensor]) -> list[Tensor | None]:
        """Replay the backward pass from these gradients of the results; returns copies of the leaves'."""
        if self.back is None:
            self.capture_backward(gradients)
        for own, new in zip(self.gradients, gradients, strict=True):
            own.copy_(new)
        assert self.back is not None
        self.back.replay()
        self.busy = False
        return [leaf.grad.clone() if leaf.grad is not None else None for leaf in self.leaves]

    def capture_backward(self, gradients: list[Tensor]) -> None:
        """Capture the backward pass; what it adds to the weights' sums is captured with it."""
        self.gradients = [gradient.clone() for gradient in gradients]
        pairs = [(r, g) for r, g in zip(self.results, self.gradients, strict=True) if r.requires_grad]
        self.back = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.back, self.pool, self.stream):
            torch.autograd.backward([r for r, _ in pairs], [g for _, g in pairs])


class Replay(torch.autograd.Function):
    """A captured reading as a node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any, slot: Slot, anchor: Tensor, memories: Tensor | None, query: Tensor | None, *given: Tensor | None
    ) -> Any:
        ctx.slot, slot.busy = slot, True
        ctx.present = [memories is not None, query is not None]
        with torch.enable_grad():
            return slot.forward(list(given))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = iter(ctx.slot.backward(list(gradients)))
        leaves = [next(found) if present else None for present in ctx.present]
        return None, None, *leaves, *[None] * len(ctx.slot.inputs)
