"""From documents to segments: pure bookkeeping on token ids, done before any arithmetic.

Shapes: b batch (rows), s segments, L segment length, k sensory tokens, j summary length, w = k + L (or L) width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hmt_ds.memory.settings import MemorySettings

IGNORED = -100  # the label that cross-entropy skips


@dataclass(frozen=True)
class Segment:
    """One segment of every row, as the backbone reads it between its two prompts.

    Attributes:
        tokens: ``[b, w]``: sensory tokens, fresh tokens, then pads. Rows without sensory tokens begin at once, so
            pads stand only at the end.
        labels: ``[b, w]``, the next token of each fresh token, ``IGNORED`` elsewhere.
        lengths: ``[b]``, sensory and fresh tokens together. The trailing prompt goes there.
        fresh_from: how many leading columns hold sensory tokens in every row: no logits are needed there.
        summary: ``[b, j]``, the first fresh tokens, padded at the end.
        summary_lengths: ``[b]``.
        mask, summary_mask: like ``tokens`` and ``summary``, False on ids that attention must not see (the left
            padding of HMT-pytorch), or None.
    """

    tokens: Tensor
    labels: Tensor
    lengths: Tensor
    fresh_from: int
    summary: Tensor
    summary_lengths: Tensor
    mask: Tensor | None = None
    summary_mask: Tensor | None = None


@dataclass(frozen=True)
class Window:
    """Some consecutive segments of every row.

    A row may hold the end of one document and the beginning of the next; only the last segment of a document may be
    short. Pads stand at the end of a segment.

    Attributes:
        input_ids: ``[b, s, L]``.
        labels: ``[b, s, L]``, shifted on the whole document before splitting, so no border target is lost.
        lengths: ``[b, s]``, fresh tokens per segment; 0 where a row has nothing left to read.
        starts: ``[b, s]`` bool, True where a segment is the first of its document, and where it is empty.
        mask: ``[b, s, L]`` bool or None; see :class:`Segment`.
        sensory: per segment, which rows have sensory tokens. Found once, on the CPU: asking a GPU in front of every
            segment would stall it.
    """

    input_ids: Tensor
    labels: Tensor
    lengths: Tensor
    starts: Tensor
    mask: Tensor | None = None
    sensory: tuple[Literal["none", "some", "all"], ...] = ()

    def __post_init__(self) -> None:
        if not self.sensory:
            fresh = self.starts.sum(dim=0).tolist()
            rows = self.starts.shape[0]
            kinds = tuple("all" if f == 0 else "none" if f == rows else "some" for f in fresh)
            object.__setattr__(self, "sensory", kinds)

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> Window:
        """The same window on another device."""
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name in ("input_ids", "labels", "lengths", "starts", "mask")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def tail(self, n: int, k: int) -> Tensor:
        """The last k ids of segment n, ``[b, k]``: the next segment's sensory tokens, if it does not start anew."""
        return self.input_ids[:, n, self.input_ids.shape[2] - k :]

    def segment(self, n: int, before: Tensor, settings: MemorySettings) -> Segment:
        """Segment n, with its sensory tokens put in front where the document goes on.

        Args:
            before: ``[b, k]``, the last ids read before the window.
        """
        fresh, count = self.input_ids[:, n], self.lengths[:, n]
        k, j = settings.sensory_tokens, min(settings.summary_length, fresh.shape[1])
        tail = self.tail(n - 1, k) if n else before
        mask = None if self.mask is None else self.mask[:, n]
        labels, going_on = self.labels[:, n], ~self.starts[:, n]
        summary = (fresh[:, :j], count.clamp(max=j))
        summary_mask = None if mask is None else mask[:, :j]
        if k == 0 or self.sensory[n] == "none":
            return Segment(fresh, labels, count, 0, *summary, mask, summary_mask)
        tokens = torch.cat([tail, fresh], dim=1)
        labels = torch.cat([torch.full_like(tail, IGNORED), labels], dim=1)
        mask = None if mask is None else torch.cat([torch.ones_like(tail, dtype=torch.bool), mask], dim=1)
        if self.sensory[n] == "all":
            return Segment(tokens, labels, count + k, k, *summary, mask, summary_mask)
        # rows at the start of a document have no sensory tokens: move them to the left, pads to the end
        order = torch.arange(tokens.shape[1], device=tokens.device) + k * ~going_on[:, None]
        order = order % tokens.shape[1]
        mask = None if mask is None else mask.gather(1, order)
        labels = labels.gather(1, order)
        return Segment(tokens.gather(1, order), labels, count + k * going_on, 0, *summary, mask, summary_mask)


def split_document(
    input_ids: Tensor, segment_length: int, mask: Tensor | None = None, *, goes_on: bool = False
) -> Window:
    """Split documents of one length into a window that covers them whole.

    Args:
        input_ids: ``[b, tokens]``, one document a row.
        segment_length: L.
        mask: ``[b, tokens]`` bool, or None.
        goes_on: whether these tokens continue documents whose beginning was read before.
    """
    batch, tokens = input_ids.shape
    segments = -(-tokens // segment_length)
    ends = torch.full_like(input_ids[:, :1], IGNORED)
    labels = torch.cat([input_ids[:, 1:], ends], dim=1)

    def split(x: Tensor, pad: int) -> Tensor:
        padding = (0, segments * segment_length - tokens)
        return torch.nn.functional.pad(x, padding, value=pad).view(batch, segments, segment_length)

    lengths = torch.full((batch, segments), segment_length, dtype=torch.long, device=input_ids.device)
    lengths[:, -1] = tokens - (segments - 1) * segment_length
    starts = torch.zeros(batch, segments, dtype=torch.bool, device=input_ids.device)
    starts[:, 0] = not goes_on
    cut = None if mask is None else split(mask.long(), 0).bool()
    return Window(split(input_ids, 0), split(labels, IGNORED), lengths, starts, cut)
