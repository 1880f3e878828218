"""Replay forward and backward passes as CUDA graphs, for models so small that launching kernels dominates.

All segments have one shape, and so have all batches of summaries (the tokens of retrieval queries). For each shape, a
forward pass and its backward pass are captured once and replayed. A captured forward pass has its own memory, called a
slot, for the activations that its backward pass needs. There are as many slots as segments that keep their activations
at a time.
"""

import gc
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from hmt_ds.memory import Segment, SegmentOutput, Summary
from hmt_ds.parallel.activation_budget import Forward

Part = Segment | Summary
Output = SegmentOutput | Tensor  # of a segment, and of a summary


class SlotKey(NamedTuple):
    """Properties of a captured forward pass's inputs; CUDA graphs captured with equal keys are interchangeable.

    Attributes:
        kind: class of the input: ``Segment`` or ``Summary``.
        shapes: shapes of the input tensors; None for a missing one.
        with_graph: whether a backward pass follows.
        with_loss: whether the loss is computed.
    """

    kind: type[Part]
    shapes: tuple[tuple[int, ...] | None, ...]
    with_graph: bool
    with_loss: bool


class GraphedForward:
    """An HMT model's forward pass, captured in CUDA graphs and replayed.

    Gradients of weights must be summed by hooks into tensors at fixed addresses, because the graphs contain these
    additions. The weights must stay at their addresses as well.

    Args:
        forward: eager forward pass of a segment, or of a summary (the tokens of retrieval queries); must have run
            before, so that nothing is left to compile.
    """

    def __init__(self, forward: Forward):
        self.forward = forward
        # Set after a whole step. A graph that is captured later could use memory that a slot still needs.
        self.complete = False
        self.slots: dict[SlotKey, list[Slot]] = {}
        # Graphs that share a pool reuse each other's memory. That is safe within a kind: its graphs are replayed in the
        # order of their capture, and passes without a backward pass keep nothing between replays.
        self.pools = {kind: torch.cuda.graph_pool_handle() for kind in (Segment, Summary, None)}
        # Autograd reuses a weight's gradient-accumulation node while any graph refers to it, on the stream where it was
        # made. So no earlier graph may survive, and warm-up passes and captures must share one stream.
        gc.collect()
        self.stream = torch.cuda.Stream()
        # Autograd makes a node only for inputs that want a gradient, and a summary has none.
        self.anchor = torch.zeros((), requires_grad=True)

    def __call__(
        self,
        part: Part,
        memories: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        query: Tensor | None = None,
        with_loss: bool = True,
    ) -> Output:
        """Run the forward pass of a segment or a batch of summaries, by replaying a CUDA graph if one is captured.

        Args:
            part: the segment, or the summaries.
            memories: ``[batch, cached, memory_tokens, dim]``, oldest first; for a segment.
            valid: ``[batch, cached]`` bool, which memories belong to the row's document; for a segment.
            query: ``[batch, memory_tokens, dim]``, the segment's summary; None without recall.
            with_loss: False returns losses of 0 and skips the output head.
        """
        with_graph = torch.is_grad_enabled()
        inputs = [getattr(part, field.name) for field in fields(part)] + [memories, valid, query]
        shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in inputs)
        slots = self.slots.setdefault(SlotKey(type(part), shapes, with_graph, with_loss), [])
        slot = next((slot for slot in slots if not slot.busy), None)
        if slot is None and self.complete:
            arguments = (memories, valid) if memories is not None else ()
            return self.forward(part, *arguments, query=query, with_loss=with_loss)
        if slot is None:
            pool = self.pools[type(part) if with_graph else None]
            slot = Slot(self.forward, type(part), with_loss, pool, self.stream)
            slots.append(slot)
        if with_graph:
            return slot.output(Replay.apply(slot, self.anchor, memories, query, *inputs))
        return slot.output(slot.replay_forward(inputs))


class Slot:
    """CUDA graphs of one forward pass and its backward pass, with the memory for the activations between them.

    A slot is busy from its forward to its backward pass; meanwhile other segments are run by other slots.

    Args:
        forward: the eager forward pass to capture.
        kind: class of the input: ``Segment`` or ``Summary``.
        with_loss: whether the loss is computed.
        pool: memory pool of CUDA graphs to allocate from.
        stream: CUDA stream on which passes are captured.
    """

    def __init__(self, forward: Forward, kind: type[Part], with_loss: bool, pool: Any, stream: torch.cuda.Stream):
        self.forward, self.kind, self.with_loss, self.pool, self.stream = forward, kind, with_loss, pool, stream
        self.busy = False
        self.forward_graph: torch.cuda.CUDAGraph | None = None
        self.backward_graph: torch.cuda.CUDAGraph | None = None

    def output(self, tensors: Sequence[Tensor]) -> Output:
        """Return the output tensors of a replayed forward pass as the ``Output`` object that the eager pass returns.

        Args:
            tensors: output tensors, in the order in which the captured pass returned them.
        """
        return SegmentOutput(*tensors) if self.kind is Segment else tensors[0]

    def replay_forward(self, inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
        """Replay the captured forward pass on new inputs, and return copies of its output tensors.

        Args:
            inputs: tensors of the captured shapes, None where None was captured.
        """
        if self.forward_graph is None:
            self.capture_forward(inputs)
        # a graph reads its inputs where they were during the capture
        for own, new in zip(self.inputs, inputs, strict=True):
            if own is not None and new is not None:
                own.data.copy_(new)
        cast(torch.cuda.CUDAGraph, self.forward_graph).replay()
        # copies, because the next replay in this slot overwrites the results
        return tuple(tensor.detach().clone() for tensor in self.results)

    def capture_forward(self, inputs: list[Tensor | None]) -> None:
        """Capture the forward pass as a CUDA graph that reads from static copies of the inputs.

        Args:
            inputs: input tensors of the forward pass; None for a missing one.
        """
        self.inputs = [None if tensor is None else tensor.detach().clone() for tensor in inputs]
        *parts, memories, valid, query = self.inputs
        self.leaves = [t.requires_grad_() for t in (memories, query) if t is not None and torch.is_grad_enabled()]
        part = self.kind(*cast(list[Tensor], parts))
        arguments = (part,) if memories is None else (part, memories, valid)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # a warm-up pass, so that libraries have allocated their workspaces
            self.forward(*arguments, query=query, with_loss=self.with_loss)
        torch.cuda.current_stream().wait_stream(self.stream)
        self.forward_graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward_graph, self.pool, self.stream):
            output = self.forward(*arguments, query=query, with_loss=self.with_loss)
        self.results = [tensor for tensor in output if tensor is not None] if self.kind is Segment else [output]

    def replay_backward(self, gradients: list[Tensor]) -> list[Tensor | None]:
        """Replay the captured backward pass, given gradients of the forward pass's outputs.

        Args:
            gradients: gradients of the outputs, in their shapes.

        Returns:
            Copies of the gradients of the forward pass's inputs; None for an input without gradient.
        """
        if self.backward_graph is None:
            self.capture_backward(gradients)
        for own, new in zip(self.gradients, gradients, strict=True):
            own.copy_(new)
        cast(torch.cuda.CUDAGraph, self.backward_graph).replay()
        self.busy = False
        return [leaf.grad.clone() if leaf.grad is not None else None for leaf in self.leaves]

    def capture_backward(self, gradients: list[Tensor]) -> None:
        """Capture the backward pass as a CUDA graph, including the additions of weights' gradients to their sums.

        Args:
            gradients: gradients of the forward pass's outputs, in their shapes.
        """
        self.gradients = [gradient.clone() for gradient in gradients]
        pairs = [(r, g) for r, g in zip(self.results, self.gradients, strict=True) if r.requires_grad]
        self.backward_graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.backward_graph, self.pool, self.stream):
            torch.autograd.backward([r for r, _ in pairs], [g for _, g in pairs])


class Replay(torch.autograd.Function):
    """Autograd function that runs a captured pass: forward and backward each replay a CUDA graph."""

    @staticmethod
    def forward(
        ctx: Any, slot: Slot, anchor: Tensor, memories: Tensor | None, query: Tensor | None, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.slot, slot.busy = slot, True
        ctx.present = [memories is not None, query is not None]
        with torch.enable_grad():
            return slot.replay_forward(list(inputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = iter(ctx.slot.replay_backward(list(gradients)))
        leaves = [next(found) if present else None for present in ctx.present]
        return None, None, *leaves, *[None] * len(ctx.slot.inputs)
