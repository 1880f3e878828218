"""What is kept between the forward and the backward pass over a window: memories, their gradients, random states."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hmt_ds.memory.segments import Window
from hmt_ds.memory.state import MemoryState

Instead = Literal["swapped", "none"]


class Boundaries:
    """The memories at all boundaries between the segments of a window, and their gradients from later segments.

    All memories are in one buffer ``[batch, carried + segments, memory_tokens, dim]``, so a boundary costs one memory
    and not a copy of the cache. The buffer is on the window's device: for a window in host memory it is in host memory
    too.
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
        """Return the cached memories that segment n may recall.

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
        """Store the memory ``[batch, memory_tokens, dim]`` that segment n wrote, detached."""
        self.memories[:, self.carried + n] = memory.detach()

    def pull(self, n: int, memory: Tensor) -> Tensor:
        """Return <M, g>, the dot product of segment n's memory and the gradient that later segments sent to it.

        A backward pass from this scalar continues theirs into segment n. ``memory``: ``[batch, memory_tokens, dim]``.
        """
        return (memory.to(self.gradients.dtype) * self.gradients[:, n].to(self.device)).sum()

    def push(self, n: int, gradient: Tensor | None, scale: float) -> None:
        """Add the gradient of the memories that segment n recalled to the buffers of the segments that wrote them.

        Memories from before the window get none: backpropagation is truncated there.

        Args:
            gradient: ``[batch, cached, memory_tokens, dim]``, multiplied by ``scale``; None adds nothing.
            scale: loss scale to divide by; 1 except in fp16.
        """
        if gradient is not None:
            seen = min(n, gradient.shape[1])
            sent = gradient[:, gradient.shape[1] - seen :].to(self.gradients) / scale
            self.gradients[:, n - seen : n] += sent

    def state(self, window: Window, tail: Tensor) -> MemoryState:
        """Return the memory state after the window, detached.

        Args:
            tail: ``[batch, sensory_tokens]``, the window's last token ids.
        """
        start = max(0, self.carried + len(window) - self.keep)
        valid = self.documents[:, start:] == self.writing[:, -1:]
        memories = self.memories[:, start:].to(self.device, copy=True)
        return MemoryState(memories, valid.to(self.device), tail.to(self.device))


def memories_instead(which: Instead, memories: Tensor, valid: Tensor, window: Window, n: int) -> tuple[Tensor, Tensor]:
    """Return other memories for segment n, to measure how much its row's own memories lower the loss.

    Args:
        which: ``swapped``: the memories of another row, so of another document; ``none``: no memory is valid.
        memories: ``[batch, cached, memory_tokens, dim]``, of all rows.
        valid: ``[batch, cached]`` bool, whether a memory belongs to its row's document.
        window: the window of all rows.
        n: index of the segment in the window.

    Returns:
        Memories and validity, in the same shapes.
    """
    if which == "none":
        return memories, torch.zeros_like(valid)
    rows = window.neighbours(n).to(memories.device)
    return memories[rows], valid[rows]


class BoundariesInstead(Boundaries):
    """Boundaries that replace the memories of a window already read, to read some of its rows with others; read-only.

    Args:
        which: ``swapped`` (another document's memories) or ``none`` (no memory).
        parts: the boundaries of the first reading, which together hold all rows in order.
        window: the window with all rows.
        rows: the rows that are read with other memories.
    """

    def __init__(self, which: Instead, parts: Sequence[Boundaries], window: Window, rows: slice):
        self.which, self.parts, self.window, self.rows = which, parts, window, rows

    def before(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the memories that segment n is read with, and whether each is valid: ``[rows, cached,
        memory_tokens, dim]`` and ``[rows, cached]`` bool."""
        memories, valid = (torch.cat(column) for column in zip(*(part.before(n) for part in self.parts), strict=True))
        memories, valid = memories_instead(self.which, memories, valid, self.window, n)
        return memories[self.rows], valid[self.rows]

    def write(self, n: int, memory: Tensor) -> None:
        """Discard segment n's memory ``[batch, memory_tokens, dim]``: a second reading, with other memories, leaves
        those of the first one as they are."""


class RandomState:
    """The states of torch's random number generators on CPU and ``device``, so that recomputation draws the same
    dropout."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None

    def restore(self) -> None:
        """Set the random number generators of CPU and device back to this state."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)
