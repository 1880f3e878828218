"""What is kept between the two readings of a window: one memory a segment, its gradient, and the random state.

Shapes: b batch, s segments of the window, c memories carried into it, m memory tokens, d embedding width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hmt_ds.memory.segments import Window
from hmt_ds.memory.state import MemoryState

Instead = Literal["swapped", "none"]


class Boundaries:
    """The memories at all segment borders of a window, and the gradients that later segments send to them.

    One buffer ``[b, c + s, m, d]`` holds the memories, so that a border costs one memory and not a copy of the cache.
    It lies where the window lies: a window that stays in the host's memory keeps its borders there.
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
        """The memories that segment n may see ``[b, c', m, d]``, and which are of its document ``[b, c']``."""
        end = self.carried + n
        start = max(0, end - self.keep)
        valid = self.documents[:, start:end] == self.reading[:, n, None]
        # a copy: a graph that is kept must not see what is written later
        return self.memories[:, start:end].to(self.device, copy=True), valid.to(self.device)

    def write(self, n: int, memory: Tensor) -> None:
        """Keep M_n ``[b, m, d]``."""
        self.memories[:, self.carried + n] = memory.detach()

    def pull(self, n: int, memory: Tensor) -> Tensor:
        """<M_n, g_n>: the scalar whose gradient is what later segments sent to M_n."""
        return (memory.to(self.gradients.dtype) * self.gradients[:, n].to(self.device)).sum()

    def push(self, n: int, gradient: Tensor | None, scale: float) -> None:
        """Add what segment n sends to the memories that it saw; those carried into the window get nothing.

        Args:
            gradient: ``[b, c', m, d]``, multiplied by ``scale``.
        """
        if gradient is not None:
            seen = min(n, gradient.shape[1])
            sent = gradient[:, gradient.shape[1] - seen :].to(self.gradients) / scale
            self.gradients[:, n - seen : n] += sent

    def state(self, window: Window, tail: Tensor) -> MemoryState:
        """The state behind the window, without a graph."""
        start = max(0, self.carried + len(window) - self.keep)
        valid = self.documents[:, start:] == self.writing[:, -1:]
        memories = self.memories[:, start:].to(self.device, copy=True)
        return MemoryState(memories, valid.to(self.device), tail.to(self.device))


def memories_instead(which: Instead, memories: Tensor, valid: Tensor, window: Window, n: int) -> tuple[Tensor, Tensor]:
    """What segment n is read with in place of its row's own memories, to see what these are worth.

    Args:
        which: ``swapped``: those of another row, that is of another document (:meth:`Window.neighbours`); ``none``: as
            if nothing were remembered.
        memories: ``[b, c, m, d]``, of all rows.
        valid: ``[b, c]``.
    """
    if which == "none":
        return memories, torch.zeros_like(valid)
    rows = window.neighbours(n).to(memories.device)
    return memories[rows], valid[rows]


class BoundariesInstead(Boundaries):
    """The memories of a window that was read, for another reading of some of its rows; nothing is written.

    Args:
        which: see :func:`memories_instead`.
        parts: the boundaries of all rows, in order.
        window: all rows.
        rows: those that are read.
    """

    def __init__(self, which: Instead, parts: Sequence[Boundaries], window: Window, rows: slice):
        self.which, self.parts, self.window, self.rows = which, parts, window, rows

    def before(self, n: int) -> tuple[Tensor, Tensor]:
        """What segment n is read with, as :meth:`Boundaries.before`."""
        memories, valid = (torch.cat(column) for column in zip(*(part.before(n) for part in self.parts), strict=True))
        memories, valid = memories_instead(self.which, memories, valid, self.window, n)
        return memories[self.rows], valid[self.rows]

    def write(self, n: int, memory: Tensor) -> None:
        """Keep nothing."""


class RandomState:
    """The random number generators' state, so that a second reading draws the same dropout as the first."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None

    def restore(self) -> None:
        """Put the generators back to this state."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)
