"""State between the forward and backward passes of truncated BPTT: memories, their gradients, random states."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hmt_ds.memory.segments import Window
from hmt_ds.memory.state import MemoryState

Instead = Literal["swapped", "none"]


class Boundaries:
    """The memories that segments wrote and pass on to later segments, and the gradients that come back to them.

    It covers one window: the consecutive segments of every row that truncated BPTT goes through. All memories are in
    one buffer ``[batch, carried + segments, memory_tokens, dim]``, so a segment adds one memory and not a copy of all
    earlier ones. The buffer is on the window's device: for a window in host memory it is in host memory too.
    """

    def __init__(self, state: MemoryState, window: Window, keep: int):
        self.keep, self.carried = keep, state.memories.shape[1]
        self.device, home = state.memories.device, window.input_ids.device
        carried = state.memories.detach().to(home)
        room = carried.new_zeros(len(carried), len(window), *carried.shape[2:])
        self.memories = torch.cat([carried, room], dim=1)
        self.gradients = torch.zeros_like(room, dtype=torch.promote_types(room.dtype, torch.float32))
        # every memory bears the number of its document within the window, or -1 if it stands for nothing
        turns = window.turns  # a segment is read with the memories of its first document, and writes one of its last
        self.reading = window.starts.long().cumsum(dim=1) + turns.cumsum(dim=1) - turns
        self.writing = self.reading + turns
        written = torch.where(window.lengths > 0, self.writing, -1)
        self.documents = torch.cat([state.valid.to(home).long() - 1, written], dim=1)

    def before(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the memories of earlier segments that segment n may retrieve.

        Args:
            n: index of the segment, from 0.

        Returns:
            The memories ``[batch, cached, memory_tokens, dim]``, oldest first, and whether each belongs to the row's
            document, ``[batch, cached]`` bool.
        """
        end = self.carried + n
        start = max(0, end - self.keep)
        valid = self.documents[:, start:end] == self.reading[:, n, None]
        # a copy: a graph that is kept must not see what is written later
        return self.memories[:, start:end].to(self.device, copy=True), valid.to(self.device)

    def write(self, n: int, memory: Tensor) -> None:
        """Store the memory that segment n wrote, detached from the graph.

        Args:
            n: index of the segment, from 0.
            memory: ``[batch, memory_tokens, dim]``.
        """
        self.memories[:, self.carried + n] = memory.detach()

    def pull(self, n: int, memory: Tensor) -> Tensor:
        """Return the dot product of segment n's memory and the gradient that later segments sent to it.

        A backward pass from this scalar continues the backward passes of later segments into segment n.

        Args:
            n: index of the segment, from 0.
            memory: ``[batch, memory_tokens, dim]``, with graph.

        Returns:
            A 0-dimensional tensor.
        """
        return (memory.to(self.gradients.dtype) * self.gradients[:, n].to(self.device)).sum()

    def push(self, n: int, gradient: Tensor | None, scale: float) -> None:
        """Add the gradient of the memories that segment n retrieved to the buffers of the segments that wrote them.

        Memories from before the window get none: backpropagation is truncated there.

        Args:
            n: index of the segment, from 0.
            gradient: ``[batch, cached, memory_tokens, dim]``, multiplied by ``scale``; None adds nothing.
            scale: loss scale to divide by; 1 except in fp16.
        """
        if gradient is not None:
            seen = min(n, gradient.shape[1])
            sent = gradient[:, gradient.shape[1] - seen :].to(self.gradients) / scale
            self.gradients[:, n - seen : n] += sent

    def state(self, window: Window, tail: Tensor) -> MemoryState:
        """Return the memory state after the last segment, detached from the graph.

        Args:
            window: the segments of all rows.
            tail: ``[batch, sensory_tokens]``, the last token ids of the window.
        """
        start = max(0, self.carried + len(window) - self.keep)
        valid = self.documents[:, start:] == self.writing[:, -1:]
        memories = self.memories[:, start:].to(self.device, copy=True)
        return MemoryState(memories, valid.to(self.device), tail.to(self.device))


def memories_instead(which: Instead, memories: Tensor, valid: Tensor, window: Window, n: int) -> tuple[Tensor, Tensor]:
    """Return substitute memories for a segment, to measure how much each row's own memories lower the loss.

    Args:
        which: ``swapped``: the memories of another row, so of another document; ``none``: no memory is valid.
        memories: ``[batch, cached, memory_tokens, dim]``, of all rows.
        valid: ``[batch, cached]`` bool, whether a memory belongs to its row's document.
        window: the segments of all rows.
        n: index of the segment, from 0.

    Returns:
        Memories and their validity, in the shapes of the arguments.
    """
    if which == "none":
        return memories, torch.zeros_like(valid)
    rows = window.neighbours(n).to(memories.device)
    return memories[rows], valid[rows]


class BoundariesInstead(Boundaries):
    """Read-only memories that replace those of segments already read, to read some rows once more with other memories.

    Args:
        which: ``swapped`` (another document's memories) or ``none`` (no memory).
        parts: the memories of the first reading, in parts that together hold all rows in order.
        window: the segments of all rows.
        rows: the rows that are read with other memories.
    """

    def __init__(self, which: Instead, parts: Sequence[Boundaries], window: Window, rows: slice):
        self.which, self.parts, self.window, self.rows = which, parts, window, rows

    def before(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the memories that segment n is read with, and whether each is valid.

        Args:
            n: index of the segment, from 0.

        Returns:
            ``[rows, cached, memory_tokens, dim]`` and ``[rows, cached]`` bool.
        """
        memories, valid = (torch.cat(column) for column in zip(*(part.before(n) for part in self.parts), strict=True))
        memories, valid = memories_instead(self.which, memories, valid, self.window, n)
        return memories[self.rows], valid[self.rows]

    def write(self, n: int, memory: Tensor) -> None:
        """Discard the memory that segment n wrote: a second reading, with other memories, must not change those of the
        first.

        Args:
            n: index of the segment.
            memory: ``[batch, memory_tokens, dim]``.
        """


class RandomState:
    """The states of torch's random number generators on the CPU and on one device, so that recomputation draws the same
    dropout.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None

    def restore(self) -> None:
        """Set the random number generators of CPU and device back to this state."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)
