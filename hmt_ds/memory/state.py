"""What crosses the border between two segments: memories, and the ids of the last k tokens.

Shapes: b batch (rows), c cached memories, m memory tokens, d embedding width, k sensory tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MemoryState:
    """The memory of every row between two segments.

    Attributes:
        memories: ``[b, c, m, d]``, oldest first.
        valid: ``[b, c]`` bool, whether that memory belongs to the row's present document.
        tail: ``[b, k]`` int64, the last k token ids read (meaningless where the next segment starts a document).
    """

    memories: Tensor
    valid: Tensor
    tail: Tensor

    @classmethod
    def empty(
        cls,
        batch: int,
        memory_tokens: int,
        dim: int,
        sensory_tokens: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        cached: int = 0,
    ) -> MemoryState:
        """The state in front of a document: nothing read, nothing remembered.

        Args:
            cached: places for memories that hold nothing yet, so that all segments have tensors of one shape.
        """
        return cls(
            memories=torch.zeros(batch, cached, memory_tokens, dim, dtype=dtype, device=device),
            valid=torch.zeros(batch, cached, dtype=torch.bool, device=device),
            tail=torch.zeros(batch, sensory_tokens, dtype=torch.long, device=device),
        )

    def forget(self, starts: Tensor) -> MemoryState:
        """Drop the memories of rows that begin a new document. ``starts``: ``[b]`` bool."""
        return MemoryState(self.memories, self.valid & ~starts[:, None], self.tail)

    def remember(self, memory: Tensor, read: Tensor, tail: Tensor, keep: int) -> MemoryState:
        """Append one memory and keep the newest ones.

        Args:
            memory: ``[b, m, d]``, M_n.
            read: ``[b]`` bool, False for rows whose segment was empty.
            tail: ``[b, k]``, the last ids of the segment just read.
            keep: N, how many memories stay.
        """
        memories = torch.cat([self.memories, memory[:, None]], dim=1)
        valid = torch.cat([self.valid, read[:, None]], dim=1)
        oldest = max(0, memories.shape[1] - keep)
        return MemoryState(memories[:, oldest:], valid[:, oldest:], tail)

    def without_broken(self) -> tuple[MemoryState, Tensor]:
        """Rows whose memories are not finite start anew, as in front of a document.

        Returns:
            The state, and which rows these are, ``[b]`` bool.
        """
        broken = ~self.memories.isfinite().flatten(1).all(dim=1)
        # zeros, for a recall weighs what is not valid with 0
        memories = self.memories.masked_fill(broken[:, None, None, None], 0)
        return MemoryState(memories, self.valid & ~broken[:, None], self.tail), broken

    def detach(self) -> MemoryState:
        """The same values without a graph: where backpropagation is truncated."""
        return MemoryState(self.memories.detach(), self.valid, self.tail)
