"""From documents to segments: pure bookkeeping on token ids, done before any arithmetic.

Shapes: b batch (rows), s segments, L segment length, k sensory tokens, j summary length, w = k + L (or L) width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from hmt_ds.memory.settings import MemorySettings

T = TypeVar("T", "Segment", "Summary", "Window")
IGNORED = -100  # the label that cross-entropy skips


@dataclass(frozen=True)
class Segment:
    """One segment of every row, as the backbone reads it between its two prompts.

    Attributes:
        tokens: ``[b, w]``: sensory tokens, fresh tokens, then pads. Rows without sensory tokens begin at once, so
            pads stand only at the end. The width is the same for all segments: whatever is compiled, is compiled once.
        lengths: ``[b]``, sensory and fresh tokens together. The trailing prompt goes there.
        fresh: ``[b, L]``, the columns of the fresh tokens.
        labels: ``[b, L]``, the next token of each fresh token, or ``IGNORED``.
        mask: ``[b, w]`` bool, False on ids that attention must not see (the left padding of HMT-pytorch), or None.
        targets: ``[b]``; see :class:`Window`.
        weights: ``[b, L]`` or None; see :class:`Window`.
        parts: ``[b, w]`` or None; see :class:`Window`. Pads behind the tokens have the number of the last document.
    """

    tokens: Tensor
    lengths: Tensor
    fresh: Tensor
    labels: Tensor
    mask: Tensor | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None
    parts: Tensor | None = None

    def to(self, device: torch.device | str) -> Segment:
        """The same segment on another device."""
        return moved(self, device)


@dataclass(frozen=True)
class Summary:
    """The beginnings of some segments, or what was before them, from which the recall's queries are made.

    Attributes:
        tokens: ``[b * s, j]``, padded at the end; segments of one row stand together.
        lengths: ``[b * s]``.
        mask: like ``tokens``; see :class:`Segment`.
    """

    tokens: Tensor
    lengths: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Summary:
        """The same on another device."""
        return moved(self, device)


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
        targets: ``[b, s]`` int64, how many memories back the one lies that a segment should recall (1: that of the
            segment before); 0 where that is not known. None where no data says so.
        weights: ``[b, s, L]`` float32, factor of each label's loss, 0 where there is no label. None: each label counts
            1.
        parts: ``[b, s, L]`` int64, for documents that share a segment: how many documents have begun within the segment
            up to a column, so 0 for the document that the segment begins with. Each further document follows a gap as
            wide as what is read in front of a first segment, which has its number too. Only the last document of a
            segment may go on in the next one, and then it has at least k tokens there. None: one document per segment.
    """

    input_ids: Tensor
    labels: Tensor
    lengths: Tensor
    starts: Tensor
    mask: Tensor | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None
    parts: Tensor | None = None

    @property
    def turns(self) -> Tensor:
        """How many documents begin within each segment, behind its first one, ``[b, s]``."""
        return torch.zeros_like(self.lengths) if self.parts is None else self.parts[:, :, -1]

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> Window:
        """The same window on another device."""
        return moved(self, device)

    def tail(self, n: int, k: int) -> Tensor:
        """The last k ids of segment n, ``[b, k]``: the next segment's sensory tokens, if it does not start anew."""
        return self.input_ids[:, n, self.input_ids.shape[2] - k :]

    def label_weights(self, n: int) -> Tensor:
        """The factor of each label's loss in segment n, ``[b, L]``: 0 where there is no label."""
        return (self.labels[:, n] != IGNORED).float() if self.weights is None else self.weights[:, n]

    def neighbours(self, n: int) -> Tensor:
        """For each row whose document goes on at segment n, the next such row; for other rows themselves. ``[b]``."""
        neighbours = torch.arange(len(self.starts), device=self.starts.device)
        going_on = neighbours[~self.starts[:, n]]
        neighbours[going_on] = going_on.roll(-1)
        return neighbours

    def segment(self, n: int, before: Tensor, settings: MemorySettings) -> Segment:
        """Segment n, with its sensory tokens put in front where the document goes on.

        Args:
            before: ``[b, k]``, the last ids read before the window.
        """
        fresh, going_on, k = self.input_ids[:, n], ~self.starts[:, n], settings.sensory_tokens
        tail = (self.tail(n - 1, k) if n else before) * going_on[:, None]
        tokens = torch.cat([tail, fresh], dim=1)
        # rows at the start of a document have no sensory tokens: zeros move behind, where pads are. (Not even masked
        # may the last document's stand there: 0 times what is not finite is not finite.)
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        order = (columns + k * ~going_on[:, None]) % tokens.shape[1]
        mask = None
        if self.mask is not None:
            seen = torch.ones_like(tail, dtype=torch.bool)
            mask = torch.cat([seen, self.mask[:, n]], dim=1).gather(1, order)
        parts = None
        if self.parts is not None:
            parts = torch.cat([torch.zeros_like(tail), self.parts[:, n]], dim=1).gather(1, order).cummax(dim=1).values
        return Segment(
            tokens=tokens.gather(1, order),
            lengths=self.lengths[:, n] + k * going_on,
            fresh=columns[: fresh.shape[1]] + k * going_on[:, None],
            labels=self.labels[:, n],
            mask=mask,
            targets=None if self.targets is None else self.targets[:, n],
            weights=None if self.weights is None else self.weights[:, n],
            parts=parts,
        )

    def summary(self, first: int, end: int, before: Tensor, settings: MemorySettings) -> Summary:
        """What the summaries of segments ``first`` to ``end - 1`` read.

        Their first j tokens; with the adapted interface their sensory tokens, so that no query depends on a token that
        is yet to be predicted.

        Args:
            before: ``[b, k]``, the last ids read before the window.
        """
        j = settings.summary_length
        if settings.interface == "adapted":
            tails = [self.tail(n - 1, j) if n else before for n in range(first, end)]
            going_on = ~self.starts[:, first:end]
            tokens = torch.stack(tails, dim=1) * going_on[:, :, None]
            return Summary(tokens.flatten(0, 1), j * going_on.flatten())
        mask = None if self.mask is None else self.mask[:, first:end, :j].flatten(0, 1)
        lengths = self.lengths[:, first:end].clamp(max=j)
        if self.parts is not None:  # of the document that goes on alone
            lengths = lengths.minimum((self.parts[:, first:end] == 0).sum(dim=2))
        lengths = lengths.flatten()
        return Summary(self.input_ids[:, first:end, :j].flatten(0, 1), lengths, mask)


def moved(tokens: T, device: torch.device | str) -> T:
    """The same tensors on another device."""
    tensors = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    there = {name: x.to(device, non_blocking=True) for name, x in tensors.items() if x is not None}
    return replace(tokens, **there)


def places_in_parts(parts: Tensor) -> Tensor:
    """For each column, how many columns of its document are in front of it. ``parts``: ``[b, t]``, never falling."""
    columns = torch.arange(parts.shape[1], device=parts.device)
    begins = torch.nn.functional.pad(parts.diff(dim=1) > 0, (1, 0))
    return columns - (columns * begins).cummax(dim=1).values


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
