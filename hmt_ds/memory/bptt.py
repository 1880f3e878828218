"""Through many segments: reading a window, and backpropagation through it at one segment's memory.

Shapes: b batch, s segments of the window, c cached memories, m memory tokens, d embedding width.
"""

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
    """What training on a window reports; sums are over its rows and segments (0-dimensional tensors).

    Attributes:
        loss: cross-entropy in nats, summed over all labels.
        recall_distance: how many segments back the recalled memories lie, summed over all recalls.
        recalls: how many segments recalled anything.
        recall_loss: the recall's own loss, summed over all segments that should recall a certain memory.
        finite: ``[b, s]`` bool, whether the loss of a row's segment is finite.
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
    """Read a window segment by segment; yields each output and the state after it.

    Under autograd this is one graph through the whole window. ``options`` go to the model (``mode``, ``with_logits``,
    ``by_token``).

    Args:
        instead: other memories to read each segment with once more, see :func:`memories_instead`. Only the losses of
            these readings are kept, as ``loss_instead``: what is remembered comes from the reading with the row's own.
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
    """Add the gradient of ``weight * loss`` of a window, holding the activations of a few segments at a time.

    First the window is read; what crosses the borders is kept, and the last segments' graphs. Then, from the last
    segment to the first, each is read again with a graph and its own backward pass follows, with the gradient that
    later segments sent to its memory put in: d(loss)/d(weights) = sum over n of d(weight * loss_n + <M_n, g_n>). The
    summaries are read ahead in batches, and go backward when all gradients of a batch are there. So every segment adds
    to the weights' gradients on its own, in the precision of whoever accumulates them, and a sharding engine reduces
    after every segment. Memories' gradients are summed in float32. Dropout draws the same numbers both times.

    Args:
        read: reads a segment or a summary.
        window: on the model's device; or on the host, and then what crosses the borders stays there too.
        state: on the model's device.
        weight: factor of the loss; usually 1 / labels of the global batch.
        recall_weight: factor of the recall's own loss.
        backward: runs the backward pass of a scalar.
        plan: what is kept and what is read twice.
        loss_scale: what ``backward`` multiplies its scalar by (fp16).
        phase: a context around each part of the work, by its name (``summary``, ``forward``, ``recompute``,
            ``backward``).

    Returns:
        Totals, and the state behind the window, detached: backpropagation is truncated there.
    """
    unroll = Unroll(read, settings, window, state, plan, phase)
    unroll.forward()
    totals = unroll.backward(weight, recall_weight, backward, loss_scale)
    tail = window.tail(len(window) - 1, settings.sensory_tokens)
    return totals, unroll.borders.state(window, tail)


class Reading(NamedTuple):
    """A segment that was read, and the leaves of its graph that collect gradients for others."""

    output: SegmentOutput
    memories: Tensor
    query: Tensor | None


class Unroll:
    """The two passes over a window; see :func:`backward_through_time`."""

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
        """Read segment n, with a graph that ends at its borders."""
        memories, valid = self.borders.before(n)
        memories = memories.detach().requires_grad_(n > 0 and memories.shape[1] > 0)
        query = self.summaries.query(n)
        segment = self.window.segment(n, self.tail, self.settings).to(self.device)
        return Reading(self.read(segment, memories, valid, query=query, **options), memories, query)

    def forward(self) -> None:
        """Read the window up to its last border; without memory nothing crosses one, and there is nothing to do."""
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
        """From the last segment to the first."""
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
        """<M_n, g_n>, where there is a memory."""
        return self.borders.pull(n, memory) if self.settings.kept_memories else 0

    def read_again(self, n: int) -> Reading:
        """Read segment n as it was read before."""
        if before := self.random.get(n):
            before.restore()
        with self.phase("recompute" if before else "forward"):
            return self.read_segment(n)

    def summaries_backward(self, n: int, backward: Callable[[Tensor], object]) -> None:
        """The backward pass of the batch of summaries that begins with segment n, if one does."""
        with self.phase("summary"):
            scalar = self.summaries.pull(n)
        if scalar is not None:
            with self.phase("backward"):
                backward(scalar)


def after(state: MemoryState, output: SegmentOutput, window: Window, n: int, settings: MemorySettings) -> MemoryState:
    """The state behind segment n."""
    tail = window.tail(n, settings.sensory_tokens)
    if output.memory.shape[1] == 0:
        return MemoryState(state.memories, state.valid, tail)
    state = state.forget(window.turns[:, n] > 0)
    return state.remember(output.memory, window.lengths[:, n] > 0, tail, settings.kept_memories)


def totals_of(output: SegmentOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, summed recall distance, number of recalls and recall loss of one segment."""
    share = output.recall
    ages = torch.arange(share.shape[1], 0, -1, device=share.device, dtype=share.dtype)
    recall_loss = output.recall_loss.detach().sum()
    return output.loss.detach().sum(), (share * ages).sum(), (share.sum(dim=1) > 0).sum(), recall_loss
