"""Cut documents into segments: pure bookkeeping on token ids, done before any arithmetic."""

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
    """One segment of every row, as the backbone reads it between its prompts.

    Attributes:
        tokens: ``[batch, width]`` token ids: sensory tokens (the last ones of the previous segment, repeated), the
            segment's own (fresh) tokens, then padding. Rows without sensory tokens begin with the fresh ones. ``width``
            is the same for all segments, so that code is compiled once.
        lengths: ``[batch]``, number of sensory and fresh tokens; the trailing prompt is put at this position.
        fresh: ``[batch, segment_length]``, columns of the fresh tokens in ``tokens``.
        labels: ``[batch, segment_length]``, the token after each fresh token, or -100 for none.
        mask: ``[batch, width]`` bool, False on tokens that attention must not see (HMT-pytorch's left padding); None:
            all are seen.
        targets: ``[batch]`` int64, how many memories back the one to retrieve is (1: the previous segment's), 0 if
            unknown; or None.
        weights: ``[batch, segment_length]`` float32, factor of each label's loss; None: each counts 1.
        parts: ``[batch, width]`` int64, index within the segment of the document at each position, of the last one for
            padding; None: one document per segment.
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
        """Return a copy of the segment on another device.

        Args:
            device: the device.
        """
        return moved(self, device)


@dataclass(frozen=True)
class Summary:
    """The tokens that retrieval queries are made of, for several segments of every row.

    Attributes:
        tokens: ``[batch * segments, length]`` token ids, padded at the end; segments of one row follow each other.
        lengths: ``[batch * segments]``, number of tokens without padding.
        mask: shaped like ``tokens``, bool, False on tokens that attention must not see; None: all are seen.
    """

    tokens: Tensor
    lengths: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Summary:
        """Return a copy of the tokens on another device.

        Args:
            device: the device.
        """
        return moved(self, device)


@dataclass(frozen=True)
class Window:
    """Consecutive segments of every row of a batch: what one truncated-BPTT pass covers.

    A row may hold the end of one document and the beginning of the next. Only the last segment of a document may be
    short; padding is at its end.

    Attributes:
        input_ids: ``[batch, segments, segment_length]``.
        labels: ``[batch, segments, segment_length]``, shifted on the whole document before it was split, so that the
            last token of a segment has a label too; -100 for none.
        lengths: ``[batch, segments]``, number of tokens per segment; 0 where a row has nothing left to read.
        starts: ``[batch, segments]`` bool, True where a segment is the first of its document, and where it is empty.
        mask: ``[batch, segments, segment_length]`` bool, False on tokens that attention must not see; None: all are
            seen.
        targets: ``[batch, segments]`` int64, how many memories back the one to retrieve is (1: the previous segment's);
            0 if unknown. None if the data names none at all.
        weights: ``[batch, segments, segment_length]`` float32, factor of each label's loss, 0 without a label. None:
            each label counts 1.
        parts: ``[batch, segments, segment_length]`` int64, for documents that share a segment: index within the segment
            of the document at each position, 0 for the one that the segment begins with. In front of each further
            document is a gap, counted as part of it, for the embeddings that precede a first segment. Only the last
            document of a segment may continue in the next segment, and then has at least ``sensory_tokens`` tokens in
            this one. None: one document per segment.
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
        """Number of documents that begin within each segment, not counting one at its first token, ``[batch,
        segments]``."""
        return torch.zeros_like(self.lengths) if self.parts is None else self.parts[:, :, -1]

    def __len__(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> Window:
        """Return a copy of the window (segments of all rows) on another device.

        Args:
            device: the device.
        """
        return moved(self, device)

    def tail(self, n: int, k: int) -> Tensor:
        """Return the last token ids of segment n, which segment n + 1 repeats (as sensory tokens) if its document
        continues.

        Args:
            n: index of the segment.
            k: number of token ids.

        Returns:
            ``[batch, k]`` token ids.
        """
        return self.input_ids[:, n, self.input_ids.shape[2] - k :]

    def label_weights(self, n: int) -> Tensor:
        """Return the factor of each label's loss in segment n, ``[batch, segment_length]`` float32; 0 where there is no
        label.

        Args:
            n: index of the segment.
        """
        return (self.labels[:, n] != IGNORED).float() if self.weights is None else self.weights[:, n]

    def neighbours(self, n: int) -> Tensor:
        """Pair rows for reading segment n with another document's memory: return the index of each row's partner,
        ``[batch]``.

        A row whose document continues at segment n gets the next such row; any other row gets itself.

        Args:
            n: index of the segment.
        """
        neighbours = torch.arange(len(self.starts), device=self.starts.device)
        going_on = neighbours[~self.starts[:, n]]
        neighbours[going_on] = going_on.roll(-1)
        return neighbours

    def segment(self, n: int, before: Tensor, settings: MemorySettings) -> Segment:
        """Return segment n as the model reads it: where a document continues, its last tokens before the segment are in
        front.

        Args:
            n: index of the segment.
            before: ``[batch, sensory_tokens]``, the last token ids before the first segment.
            settings: settings of the memory.
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
        """Return the tokens that the retrieval queries of segments ``first`` to ``end - 1`` are made of.

        With ``interface: paper`` the first tokens of each segment; with ``adapted`` the last tokens before it, so that
        no query depends on a token that is yet to be predicted.

        Args:
            first, end: index of the first segment, and of the one behind the last.
            before: ``[batch, sensory_tokens]``, the last token ids before the first segment.
            settings: settings of the memory.
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
    """Return a copy of a dataclass of tensors with each tensor moved to a device; fields that are None stay None.

    Args:
        tokens: the dataclass, such as a `Segment`.
        device: the device.
    """
    tensors = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    there = {name: x.to(device, non_blocking=True) for name, x in tensors.items() if x is not None}
    return replace(tokens, **there)


def places_in_parts(parts: Tensor) -> Tensor:
    """Return for each position how many positions of the same document come before it, ``[batch, positions]``.

    Args:
        parts: ``[batch, positions]`` int64, index of the document at each position, never decreasing along a row.
    """
    columns = torch.arange(parts.shape[1], device=parts.device)
    begins = torch.nn.functional.pad(parts.diff(dim=1) > 0, (1, 0))
    return columns - (columns * begins).cummax(dim=1).values


def split_document(
    input_ids: Tensor, segment_length: int, mask: Tensor | None = None, *, goes_on: bool = False
) -> Window:
    """Split documents of equal length into segments, as one window that covers them whole.

    Args:
        input_ids: ``[batch, tokens]``, one document per row.
        segment_length: tokens per segment; the last segment may be shorter.
        mask: ``[batch, tokens]`` bool, False on tokens that attention must not see; None: all are seen.
        goes_on: True if these tokens continue documents whose beginning was read before.
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
