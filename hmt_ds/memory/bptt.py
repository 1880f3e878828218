"""Truncated backpropagation through the segments of a document, holding the activations of few segments at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hmt_ds.memory.boundaries import Boundaries, Instead, RandomState, memories_instead
from hmt_ds.memory.cell import SegmentOutput
from hmt_ds.memory.loss import weighted
from hmt_ds.memory.recompute_plan import RecomputePlan
from hmt_ds.memory.segments import Window
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.memory.state import MemoryState
from hmt_ds.memory.summaries import Summaries

ONE_SEGMENT = RecomputePlan()
Read = Callable[..., Any]  # an HMT, or an engine around one
Phase = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class WindowTotals:
    """Losses and retrieval statistics, summed over the rows and segments that one truncated-BPTT pass covers.

    All are 0-dimensional tensors except ``finite``.

    Attributes:
        loss: cross-entropy in nats, summed over all labels.
        recall_distance: how many segments back the retrieved memories are, summed over all retrievals.
        recalls: number of (row, segment) pairs that retrieved a memory.
        recall_loss: auxiliary retrieval loss in nats, summed over all segments for which the data names the right
            memory.
        finite: ``[batch, segments]`` bool, whether the loss is finite.
    """

    loss: Tensor
    recall_distance: Tensor
    recalls: Tensor
    recall_loss: Tensor
    finite: Tensor


def read_window(
    read: Read,
    settings: MemorySettings,
    window: Window,
    state: MemoryState,
    *,
    instead: Sequence[Instead] = (),
    **options: Any,
) -> Iterator[tuple[SegmentOutput, MemoryState]]:
    """Run the model on consecutive segments, one after the other; yield each output and the memory state after it.

    Under autograd, this is one graph through all segments.

    Args:
        read: the model, or an engine around it.
        settings: settings of the memory.
        window: the segments of all rows.
        state: memories of earlier segments.
        instead: read each segment once more with these other memories: ``swapped`` (another document's), ``none``. Only
            the losses are kept, as ``loss_instead`` of the output.
        options: keyword arguments of the model: ``mode``, ``with_logits``, ``by_token``.
    """
    before = state.tail
    summarises = settings.summarises and options.get("mode", "hmt") == "hmt"
    for n in range(len(window)):
        state = state.forget(window.starts[:, n])
        if summarises and state.memories.shape[1]:
            options["query"] = read(window.summary(n, n + 1, before, settings))
        segment, memories = window.segment(n, before, settings), (state.memories, state.valid)
        output = read(segment, *memories, **options)
        if instead:
            others = (read(segment, *memories_instead(which, *memories, window, n), **options) for which in instead)
            output = output._replace(loss_instead=torch.stack([other.loss for other in others]))
        state = after(state, output, window, n, settings)
        yield output, state


def backward_through_time(
    read: Read,
    settings: MemorySettings,
    window: Window,
    state: MemoryState,
    *,
    weight: float,
    recall_weight: float = 0.0,
    backward: Callable[[Tensor], object],
    plan: RecomputePlan = ONE_SEGMENT,
    loss_scale: float = 1.0,
    phase: Phase = nullcontext,
) -> tuple[WindowTotals, MemoryState]:
    """Add the gradient of ``weight * loss`` of consecutive segments (a window) to the weights' gradients.

    Only the activations of a few segments are held at a time. The forward pass keeps the memory that each segment
    wrote, and the graphs of the last segments. Then, from the last segment to the first, each is recomputed with a
    graph (unless its graph was kept), and gets a backward pass of its own, which includes the gradient g_n that later
    segments sent to its memory M_n: d(loss)/d(weights) = sum over n of d(weight * loss_n + <M_n, g_n>). Summaries,
    which retrieval queries are made of, are computed before, in batches, and a batch has its backward pass once all
    gradients of its queries are known. Gradients of memories are summed in float32. Dropout draws the same numbers both
    times.

    Args:
        read: the model, or an engine around it; called with a segment or a summary.
        settings: settings of the memory.
        window: the segments of all rows, on the model's device; or on the host, and then memories are kept there too.
        state: memories of earlier segments, on the model's device.
        weight: factor of the loss; usually 1 / labels of the global batch.
        recall_weight: factor of the auxiliary retrieval loss.
        backward: runs the backward pass from a scalar.
        plan: how many segments and summaries keep their activations.
        loss_scale: factor that ``backward`` multiplies its scalar by; 1 except in fp16.
        phase: times parts of the work: called with ``summary``, ``forward``, ``recompute`` or ``backward``, returns a
            context.

    Returns:
        Losses and retrieval statistics, and the memory state after the window, detached: backpropagation is truncated
        there.
    """
    unroll = Unroll(read, settings, window, state, plan, phase)
    unroll.forward()
    totals = unroll.backward(weight, recall_weight, backward, loss_scale)
    tail = window.tail(len(window) - 1, settings.sensory_tokens)
    return totals, unroll.borders.state(window, tail)


class Reading(NamedTuple):
    """The output of one segment, and the leaves of its autograd graph whose gradients belong to earlier segments.

    Attributes:
        output: losses, memory and retrieval weights of the segment.
        memories: ``[batch, cached, memory_tokens, dim]``, the memories that the segment retrieved from.
        query: ``[batch, memory_tokens, dim]``, the segment's retrieval query; None without retrieval.
    """

    output: SegmentOutput
    memories: Tensor
    query: Tensor | None


class Unroll:
    """The forward and the backward pass of truncated BPTT through consecutive segments (a window).

    Args:
        read: the model, or an engine around it; called with a segment or a summary.
        window: the segments of all rows.
        state: memories of earlier segments.
        plan: how many segments and summaries (which retrieval queries are made of) keep their activations.
        phase: times parts of the work: called with a part's name, such as ``forward``, returns a context.
    """

    def __init__(
        self,
        read: Read,
        settings: MemorySettings,
        window: Window,
        state: MemoryState,
        plan: RecomputePlan,
        phase: Phase,
    ):
        self.read, self.settings, self.window, self.plan, self.phase = read, settings, window, plan, phase
        self.device, self.tail = state.memories.device, state.tail.to(window.input_ids.device)
        self.borders = Boundaries(state, window, settings.kept_memories)
        # the first segment of all has nothing to recall
        first = (0 if state.memories.shape[1] else 1) if settings.summarises else len(window)
        with phase("summary"):
            self.summaries = Summaries(read, settings, window, first, plan, self.device, self.tail)
        self.kept: dict[int, Reading] = {}
        self.random: dict[int, RandomState] = {}

    def read_segment(self, n: int, **options: bool) -> Reading:
        """Run the model on segment n; its graph ends at the memories that it retrieves from and at its retrieval query.

        Args:
            n: index of the segment, from 0.
            options: keyword arguments of the model, such as ``with_loss``.
        """
        memories, valid = self.borders.before(n)
        memories = memories.detach().requires_grad_(n > 0 and memories.shape[1] > 0)
        query = self.summaries.query(n)
        segment = self.window.segment(n, self.tail, self.settings).to(self.device)
        return Reading(self.read(segment, memories, valid, query=query, **options), memories, query)

    def forward(self) -> None:
        """Run all segments forward, store the memories that they write, and keep the autograd graphs of the last
        segments.

        Does nothing if the model has no memory: each segment's only forward pass is then part of :meth:`backward`.
        """
        if not self.settings.kept_memories:
            return
        kept_from = len(self.window) - max(1, self.plan.kept_segments)
        for n in range(len(self.window)):
            self.random[n] = RandomState(self.device)
            keep = n >= kept_from
            with self.phase("forward"), torch.set_grad_enabled(keep):
                reading = self.read_segment(n, with_loss=keep)
            self.borders.write(n, reading.output.memory)
            if keep:
                self.kept[n] = reading
        self.random[len(self.window)] = RandomState(self.device)

    def backward(
        self, weight: float, recall_weight: float, backward: Callable[[Tensor], object], loss_scale: float
    ) -> WindowTotals:
        """Run the backward passes from the last segment to the first, recomputing segments whose graph was not kept.

        Args:
            weight: factor of the loss.
            recall_weight: factor of the auxiliary retrieval loss.
            backward: runs the backward pass from a scalar.
            loss_scale: factor that ``backward`` multiplies its scalar by; 1 except in fp16.

        Returns:
            Losses and retrieval statistics, summed over rows and segments.
        """
        totals, finite = [], []
        for n in reversed(range(len(self.window))):
            reading = self.kept.pop(n, None) or self.read_again(n)
            with self.phase("backward"):
                loss, recall_loss = reading.output.loss, reading.output.recall_loss
                own = weighted(loss, weight) + weighted(recall_loss, recall_weight)
                backward(own + self.sent_back(n, reading.output.memory))
            self.borders.push(n, reading.memories.grad, loss_scale)
            if reading.query is not None:
                self.summaries.push(n, reading.query.grad, loss_scale)
            totals.append(totals_of(reading.output))
            finite.append(reading.output.loss.isfinite())
            del reading  # its graph must not stand while a batch of summaries is read
            self.summaries_backward(n, backward)
        if last := self.random.get(len(self.window)):
            last.restore()
        loss, distance, recalls, recall = (torch.stack(column).sum() for column in zip(*totals, strict=True))
        return WindowTotals(loss, distance, recalls, recall, torch.stack(finite[::-1], dim=1))

    def sent_back(self, n: int, memory: Tensor) -> Tensor | int:
        """Return the dot product of segment n's memory and the gradient that later segments sent to it; 0 without
        memory.

        Args:
            n: index of the segment, from 0.
            memory: ``[batch, memory_tokens, dim]``, the memory that the segment wrote, with graph.
        """
        return self.borders.pull(n, memory) if self.settings.kept_memories else 0

    def read_again(self, n: int) -> Reading:
        """Recompute segment n (its index, from 0) with an autograd graph, with the random numbers that its forward pass
        drew."""
        if before := self.random.get(n):
            before.restore()
        with self.phase("recompute" if before else "forward"):
            return self.read_segment(n)

    def summaries_backward(self, n: int, backward: Callable[[Tensor], object]) -> None:
        """Run the backward pass of the batch of summaries (which retrieval queries are made of) that begins at segment
        n, if any.

        Args:
            n: index of the segment, from 0.
            backward: runs the backward pass from a scalar.
        """
        with self.phase("summary"):
            scalar = self.summaries.pull(n)
        if scalar is not None:
            with self.phase("backward"):
                backward(scalar)


def after(state: MemoryState, output: SegmentOutput, window: Window, n: int, settings: MemorySettings) -> MemoryState:
    """Return the memory state after segment n: the state before it, with the memory that the segment wrote appended.

    Args:
        state: the memory state before the segment.
        output: the segment's output.
        window: the segments of all rows.
        n: index of the segment, from 0.
        settings: settings of the memory.
    """
    tail = window.tail(n, settings.sensory_tokens)
    if output.memory.shape[1] == 0:
        return MemoryState(state.memories, state.valid, tail)
    state = state.forget(window.turns[:, n] > 0)
    return state.remember(output.memory, window.lengths[:, n] > 0, tail, settings.kept_memories)


def totals_of(output: SegmentOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum one segment's loss and retrieval statistics over its rows.

    Returns:
        Loss (nats), distance of retrieved memories (segments), number of retrievals, and auxiliary retrieval loss
        (nats); 0-dimensional, detached.
    """
    share = output.recall
    ages = torch.arange(share.shape[1], 0, -1, device=share.device, dtype=share.dtype)
    recall_loss = output.recall_loss.detach().sum()
    return output.loss.detach().sum(), (share * ages).sum(), (share.sum(dim=1) > 0).sum(), recall_loss
