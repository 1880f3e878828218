"""How far each row of a batch has read its document: its memories, and the tokens of its last segment.

Rows of padded batches complete their segments at different times, so all values are kept per row. A row's open segment
is its last one: the tokens whose memory is not written yet.

Shapes: b batch, w tokens of the longest open segment, m memory tokens, d embedding width, k sensory tokens (the last
ones of the previous segment).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmt_ds.memory.segments import Window
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.memory.state import MemoryState


@dataclass(frozen=True)
class Rows:
    """Memories and open segment (the last one, whose memory is not written yet) of each row of a batch.

    Token counts are kept on the host, so that decoding a token waits for no copy from the device.

    Attributes:
        state: memories, and the last tokens before each row's open segment. In each row the valid memories come last.
        tokens: ``[batch, width]`` int64, token ids of the open segments, left-aligned; behind a row's tokens arbitrary.
        lengths: number of tokens in each row's open segment. A full segment stays open until another token follows.
        closed: number of segments of each row whose memory is written.
    """

    state: MemoryState
    tokens: Tensor
    lengths: tuple[int, ...]
    closed: tuple[int, ...]

    def append(self, ids: Tensor, real: Tensor | None) -> "Rows":
        """Return a copy in which tokens are added to each row's last segment, which may become longer than a segment.

        Args:
            ids: token ids ``[batch, columns]``.
            real: ``[batch, columns]`` bool, False on pads, which are skipped; None without pads.
        """
        if real is None and len(set(self.lengths)) == 1:
            tokens = torch.cat([self.tokens[:, : self.lengths[0]], ids], dim=1)
            return replace(self, tokens=tokens, lengths=tuple(n + ids.shape[1] for n in self.lengths))
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real
        own = torch.arange(self.tokens.shape[1], device=ids.device) < self.counts()[:, None]
        kept = torch.cat([own, real], dim=1)
        tokens = torch.cat([self.tokens, ids], dim=1).gather(1, (~kept).long().argsort(dim=1, stable=True))
        lengths = tuple(int(n) for n in kept.sum(dim=1).tolist())
        return replace(self, tokens=tokens[:, : max(lengths)], lengths=lengths)

    def counts(self) -> Tensor:
        """Return the number of tokens in each row's last segment, ``[batch]`` int64 on the device."""
        return torch.tensor(self.lengths, device=self.tokens.device)

    def window(self, length: int, segments: int = 1) -> Window:
        """Return the first tokens of each row whose memory is not written yet, as a `Window` of segments.

        Args:
            length: tokens of each segment.
            segments: number of segments per row.
        """
        tokens = self.tokens[:, : length * segments]
        tokens = torch.nn.functional.pad(tokens, (0, length * segments - tokens.shape[1])).unflatten(1, (segments, -1))
        begins = torch.arange(segments, device=tokens.device) * length
        lengths = (self.counts()[:, None] - begins).clamp(0, length)
        starts = torch.tensor([n == 0 for n in self.closed], device=tokens.device)[:, None] & (begins == 0)
        return Window(tokens, tokens, lengths, starts)

    def close(self, closes: Tensor, memory: Tensor, settings: MemorySettings) -> "Rows":
        """Return a copy in which some rows have finished their first segment: its memory is stored and its tokens are
        dropped.

        Args:
            closes: ``[batch]`` bool on the host; True for rows that finish a segment, which have more tokens than one.
            memory: memories ``[batch, memory tokens, dim]`` of the first segments; no memory tokens without memory.
            settings: the model's memory settings.
        """
        length, k = settings.segment_length, settings.sensory_tokens
        there = closes.to(self.tokens.device)
        tail = torch.where(there[:, None], self.tokens[:, length - k : length], self.state.tail)
        lengths = tuple(n - length * c for n, c in zip(self.lengths, closes.tolist(), strict=True))
        columns = torch.arange(max(lengths), device=there.device) + length * there[:, None]
        tokens = self.tokens.gather(1, columns.clamp(max=self.tokens.shape[1] - 1))
        closed = tuple(n + c for n, c in zip(self.closed, closes.tolist(), strict=True))
        keep = min(settings.kept_memories, max(closed))
        return Rows(remember(self.state, there, memory, tail, keep), tokens, lengths, closed)

    def before_closing(self, closes: Tensor, length: int) -> "Rows":
        """Return what finishing the first segment drops (its tokens and the memories before it), to be able to undo it.

        Args:
            closes: ``[batch]`` bool on the host; True for rows that finish a segment.
            length: segment length in tokens.
        """
        return replace(self, tokens=self.tokens[:, :length], lengths=tuple(length * c for c in closes.tolist()))

    def shortened(self, number: int) -> "Rows":
        """Return a copy without the last tokens of each row; every row must have that many in its last segment.

        Args:
            number: number of tokens to remove.
        """
        return replace(self, lengths=tuple(n - number for n in self.lengths))

    def select(self, rows: Tensor) -> "Rows":
        """Return a copy of some rows, in the given order.

        Args:
            rows: indices of the rows, ``[n]``; an index may repeat.
        """
        state = self.state
        chosen = MemoryState(*(x.index_select(0, rows) for x in (state.memories, state.valid, state.tail)))
        numbers = rows.tolist()
        lengths, closed = (tuple(of[n] for n in numbers) for of in (self.lengths, self.closed))
        return Rows(chosen, self.tokens.index_select(0, rows), lengths, closed)


def remember(state: MemoryState, closes: Tensor, memory: Tensor, tail: Tensor, keep: int) -> MemoryState:
    """Return the memory state after some rows have finished a segment: their new memory is added, old ones are dropped.

    Args:
        state: memories and last (sensory) tokens of all rows.
        closes: ``[batch]`` bool; True for rows that get a memory. Other rows get an invalid memory in front instead, so
            that in each row the valid memories come last.
        memory: memories of the finished segments, ``[batch, memory tokens, dim]``; ignored in other rows.
        tail: ids of the last tokens before every row's next segment, ``[batch, sensory tokens]``.
        keep: largest number of memories that a row keeps.
    """
    if memory.shape[1] == 0:
        return replace(state, tail=tail)
    memories, valid = state.memories, state.valid
    longer = torch.cat([memories, memory[:, None]], dim=1), torch.cat([valid, closes[:, None]], dim=1)
    same = torch.cat([torch.zeros_like(memory[:, None]), memories], dim=1), torch.nn.functional.pad(valid, (1, 0))
    memories = torch.where(closes[:, None, None, None], longer[0], same[0])
    valid = torch.where(closes[:, None], longer[1], same[1])
    return MemoryState(memories[:, memories.shape[1] - keep :], valid[:, valid.shape[1] - keep :], tail)
