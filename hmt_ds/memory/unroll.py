"""Through many segments: reading a window, and backpropagation through it at one segment's memory.

Shapes: b batch, s segments of the window, c cached memories, m memory tokens, d embedding width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hmt_ds.memory.borders import Borders, RandomState
from hmt_ds.memory.cell import SegmentOutput
from hmt_ds.memory.segments import Window
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.memory.state import MemoryState

ReadSegment = Callable[..., SegmentOutput]  # an HMT, or an engine around one


@dataclass(frozen=True)
class WindowTotals:
    """What training on a window reports, summed over its rows and segments (0-dimensional tensors).

    Attributes:
        loss: cross-entropy in nats, summed over all labels.
        recall_distance: how many segments back the recalled memories lie, summed over all recalls.
        recalls: how many segments recalled anything.
    """

    loss: Tensor
    recall_distance: Tensor
    recalls: Tensor


def read_window(
    read: ReadSegment, settings: MemorySettings, window: Window, state: MemoryState, **options: Any
) -> Iterator[tuple[SegmentOutput, MemoryState]]:
    """Read a window segment by segment; yields each output and the state after it.

    Under autograd this is one graph through the whole window. ``options`` go to the model (``mode``, ``with_logits``).
    """
    before = state.tail
    for n in range(len(window)):
        state = state.forget(window.starts[:, n])
        output = read(window.segment(n, before, settings), state.memories, state.valid, **options)
        state = after(state, output, window, n, settings)
        yield output, state


def backward_through_time(
    read: ReadSegment,
    settings: MemorySettings,
    window: Window,
    state: MemoryState,
    *,
    weight: float,
    backward: Callable[[Tensor], object],
    loss_scale: float = 1.0,
) -> tuple[WindowTotals, MemoryState]:
    """Add the gradient of ``weight * loss`` of a window, holding the activations of one segment at a time.

    First the window is read without a graph; what crosses the borders is kept, and nothing else. Then, from the last
    segment to the first, each is read again with a graph and its own backward pass follows, with the gradient that
    later segments sent to its memory put in: d(loss)/d(weights) = sum over n of d(weight * loss_n + <M_n, g_n>). So
    every segment adds to the weights' gradients on its own, in the precision of whoever accumulates them, and a
    sharding engine reduces after every segment. The last segment is read once only. Memories' gradients are summed
    in float32. Dropout draws the same numbers both times.

    Args:
        read: reads one segment; called once more before each ``backward``, as DeepSpeed's engines want.
        weight: factor of the loss; usually 1 / labels of the global batch.
        backward: runs the backward pass of a scalar.
        loss_scale: what ``backward`` multiplies its scalar by (fp16).

    Returns:
        Totals, and the state behind the window, detached: backpropagation is truncated there.
    """
    device = window.input_ids.device
    borders = Borders(state, window, settings.kept_memories)
    last, remembers = len(window) - 1, settings.kept_memories > 0
    random = [RandomState(device)]
    with torch.no_grad():
        # without memory nothing crosses a border, and there is nothing to read ahead for
        for n in range(last) if remembers else ():
            output = read(window.segment(n, state.tail, settings), *borders.before(n))
            borders.write(n, output.memory)
            random.append(RandomState(device))

    totals = []
    for n in range(last, -1, -1):
        if n < last and remembers:
            random[n].restore()
        memories, valid = borders.before(n)
        memories = memories.detach().requires_grad_(n > 0 and memories.shape[1] > 0)
        output = read(window.segment(n, state.tail, settings), memories, valid)
        if n == last:
            drawn = RandomState(device)
        backward(output.loss.sum() * weight + (borders.pull(n, output.memory) if remembers else 0))
        if n == last and remembers:
            borders.write(n, output.memory)
        borders.push(n, memories.grad, loss_scale)
        totals.append(totals_of(output))
    if remembers:
        drawn.restore()
    sums = WindowTotals(*(torch.stack(column).sum() for column in zip(*totals, strict=True)))
    return sums, borders.state(window, window.tail(last, settings.sensory_tokens))


def after(state: MemoryState, output: SegmentOutput, window: Window, n: int, settings: MemorySettings) -> MemoryState:
    """The state behind segment n."""
    tail = window.tail(n, settings.sensory_tokens)
    if output.memory.shape[1] == 0:
        return MemoryState(state.memories, state.valid, tail)
    return state.remember(output.memory, window.lengths[:, n] > 0, tail, settings.kept_memories)


def totals_of(output: SegmentOutput) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, summed recall distance and number of recalls of one segment."""
    share = output.recall
    ages = torch.arange(share.shape[1], 0, -1, device=share.device, dtype=share.dtype)
    return output.loss.detach().sum(), (share * ages).sum(), (share.sum(dim=1) > 0).sum()
