"""The state that a model carries from one segment to the next: memories, and the ids of the last tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MemoryState:
    """The state of every row between two segments: memories of earlier segments, and the last token ids.

    Attributes:
        memories: ``[batch, cached, memory_tokens, dim]``, oldest first.
        valid: ``[batch, cached]`` bool, whether the memory belongs to the row's present document.
        tail: ``[batch, sensory_tokens]`` int64, the last token ids read (meaningless if the next segment starts a
            document).
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
        """Return the state before a document: no tokens read, no valid memory.

        Args:
            batch: number of rows.
            memory_tokens: embeddings per memory.
            dim: embedding width.
            sensory_tokens: number of last token ids to keep.
            dtype: dtype of the memories.
            device: device of all tensors.
            cached: number of invalid memories to begin with, so that all segments have tensors of one shape.
        """
        return cls(
            memories=torch.zeros(batch, cached, memory_tokens, dim, dtype=dtype, device=device),
            valid=torch.zeros(batch, cached, dtype=torch.bool, device=device),
            tail=torch.zeros(batch, sensory_tokens, dtype=torch.long, device=device),
        )

    def forget(self, starts: Tensor) -> MemoryState:
        """Return the state with all memories invalid in the rows that begin a document.

        Args:
            starts: ``[batch]`` bool, True in those rows.
        """
        return MemoryState(self.memories, self.valid & ~starts[:, None], self.tail)

    def remember(self, memory: Tensor, read: Tensor, tail: Tensor, keep: int) -> MemoryState:
        """Return the state with one memory appended, keeping the newest ones.

        Args:
            memory: ``[batch, memory_tokens, dim]``, written by the segment just read.
            read: ``[batch]`` bool, False for rows whose segment was empty.
            tail: ``[batch, sensory_tokens]``, the last token ids of the segment just read.
            keep: number of memories to keep.
        """
        memories = torch.cat([self.memories, memory[:, None]], dim=1)
        valid = torch.cat([self.valid, read[:, None]], dim=1)
        oldest = max(0, memories.shape[1] - keep)
        return MemoryState(memories[:, oldest:], valid[:, oldest:], tail)

    def without_broken(self) -> tuple[MemoryState, Tensor]:
        """Reset rows with a memory that is not finite to the state before a document.

        Returns:
            The state, and whether each row was reset, ``[batch]`` bool.
        """
        broken = ~self.memories.isfinite().flatten(1).all(dim=1)
        # zeros, for a recall weighs what is not valid with 0
        memories = self.memories.masked_fill(broken[:, None, None, None], 0)
        return MemoryState(memories, self.valid & ~broken[:, None], self.tail), broken

    def detach(self) -> MemoryState:
        """Return the same state detached from the autograd graph, which truncates backpropagation through time."""
        return MemoryState(self.memories.detach(), self.valid, self.tail)
