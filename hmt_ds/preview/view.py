"""Prepare documents for a preview: segments as runs of text whose tokens have one weight in the loss, and a
histogram of lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hmt_ds.memory import MemorySettings
from hmt_ds.preview.documents import Document


class Run(NamedTuple):
    """Text of consecutive tokens that have the same weight in the loss.

    Attributes:
        text: the text.
        weight: weight in the loss of each of the tokens; 0 for none.
    """

    text: str
    weight: float


@dataclass(frozen=True)
class Reading:
    """One segment of a document, as the model reads it.

    Attributes:
        number: number of the segment, from 1.
        first: position in the document of the segment's first token, from 0.
        tokens: number of the segment's own tokens.
        shared: whether other documents are in the segment, too.
        in_loss: number of the segment's tokens with a weight in the loss.
        before: what is read in front of the tokens, such as "memory 16" for 16 memory embeddings.
        sensory: text of the last tokens of the previous segment, which are read again.
        runs: text of the segment's own tokens.
        behind: what is read behind the tokens, such as "write 16" for 16 embeddings at which memory is written.
    """

    number: int
    first: int
    tokens: int
    shared: bool
    in_loss: int
    before: list[str]
    sensory: str
    runs: list[Run]
    behind: list[str]

    @property
    def title(self) -> str:
        """Heading of the segment: its number, the positions of its tokens in the document, and how many are in the
        loss."""
        last = self.first + self.tokens - 1
        shared = ", with other documents" if self.shared else ""
        return f"segment {self.number}: tokens {self.first:,} to {last:,}, {self.in_loss:,} in the loss{shared}"


@dataclass(frozen=True)
class Shown:
    """A training document as a preview shows it.

    Attributes:
        name: number of the document, and its data source.
        tokens, segments, in_loss: number of the document's tokens, of its segments, and of its tokens with a weight in
            the loss.
        readings: the segments that are shown; None in place of those between the first and the last ones.
    """

    name: str
    tokens: int
    segments: int
    in_loss: int
    readings: list[Reading | None]

    @property
    def size(self) -> str:
        """Number of tokens, of segments, and of tokens in the loss of the document, as text."""
        segments = f"{self.segments:,} segments" if self.segments > 1 else "1 segment"
        return f"{self.tokens:,} tokens in {segments}, {self.in_loss:,} in the loss"

    @property
    def weights(self) -> set[float]:
        """The different weights in the loss that the shown tokens have."""
        return {run.weight for reading in self.readings if reading for run in reading.runs}


class Bar(NamedTuple):
    """A row of the histogram of document lengths.

    Attributes:
        segments: lengths in segments, such as ``3 to 4``.
        documents: number of documents whose length is in this range.
        share: number of documents as a fraction (0 to 1) of the number in the largest row.
    """

    segments: str
    documents: int
    share: float


def show(
    document: Document, name: str, settings: MemorySettings, tokenizer: PreTrainedTokenizerBase, most: int
) -> Shown:
    """Prepare a training document for a preview.

    Args:
        document: a whole document.
        name: number of the document, and its data source.
        settings: settings of the memory.
        tokenizer: decodes the tokens.
        most: largest number of segments to show; of a longer document the first most/2 and the last most/2 ones.
    """
    count = len(document.parts)
    head = count if count <= most else most - most // 2
    chosen: list[int | None] = list(range(head))
    if count > head:
        chosen += [None, *range(count - most // 2, count)]
    readings = [None if n is None else read(document, n, settings, tokenizer) for n in chosen]
    in_loss = sum(int((document.weights(n) > 0).sum()) for n in range(count))
    return Shown(name, document.tokens, count, in_loss, readings)


def read(document: Document, n: int, settings: MemorySettings, tokenizer: PreTrainedTokenizerBase) -> Reading:
    """Prepare one segment of a document for a preview: its text, and what the model reads in front of and behind it.

    Args:
        document: a whole document.
        n: index of the segment, from 0.
        settings: settings of the memory.
        tokenizer: decodes the tokens.
    """
    part, weights, k = document.parts[n], document.weights(n), settings.sensory_tokens
    tail = document.parts[n - 1].ids[-k:] if n and k else part.ids[:0]
    before = ["sink"] * settings.sink_tokens
    if prompt := settings.prompt_tokens():
        before.append(f"memory {prompt}" if n else f"initial memory {prompt}")
    behind = [f"write {settings.write_tokens()}"] if settings.write_tokens() and part.place.last else []
    first = sum(len(one.ids) for one in document.parts[:n])
    in_loss = int((weights > 0).sum())
    sensory, *runs = runs_of(tail, part.ids, weights, tokenizer)
    return Reading(n + 1, first, len(part.ids), part.place.shared, in_loss, before, sensory.text, runs, behind)


def runs_of(tail: Tensor, ids: Tensor, weights: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[Run]:
    """Return a segment's text in pieces of equal loss weight, after the text of the tokens repeated from the segment
    before.

    Each text is what it adds to the text before it, so that blanks between tokens are those of the document.

    Args:
        tail: ids of the repeated (sensory) tokens, ``[k]`` int64; the first piece is their text.
        ids: ids of the segment's own tokens, ``[tokens]`` int64.
        weights: weights in the loss of the segment's own tokens, ``[tokens]``.
        tokenizer: decodes the tokens.
    """
    ends = [0, *(np.flatnonzero(np.diff(weights.numpy())) + 1).tolist(), len(ids)]
    both, runs, before = torch.cat([tail, ids]), [], ""
    for end in ends:
        text = tokenizer.decode(both[: len(tail) + end], clean_up_tokenization_spaces=False)
        runs.append(Run(text[len(before) :], float(weights[end - 1]) if end else 0.0))
        before = text
    return runs


def histogram(lengths: Sequence[int] | np.ndarray, segment_length: int) -> list[Bar]:
    """Count the documents that have 1, 2, 3 to 4, 5 to 8, ... segments, from the shortest to the longest.

    Args:
        lengths: tokens of each document, ``[documents]``.
        segment_length: tokens of a segment.
    """
    segments = -(-np.asarray(lengths, dtype=np.int64) // segment_length)
    powers = np.ceil(np.log2(np.maximum(segments, 1))).astype(int)
    counts = np.bincount(powers)
    bars = []
    for power in range(powers.min(), len(counts)):
        first, last = 2**power // 2 + 1, 2**power
        name = f"{last:,}" if power < 2 else f"{first:,} to {last:,}"
        bars.append(Bar(name, int(counts[power]), float(counts[power] / counts.max())))
    return bars


def padding(lengths: Sequence[int] | np.ndarray, segment_length: int) -> float:
    """Return the fraction (0 to 1) of positions that hold padding, because a document's last segment is short.

    Args:
        lengths: tokens of each document, ``[documents]``.
        segment_length: tokens of a segment.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    return 1 - float(lengths.sum() / (-(-lengths // segment_length) * segment_length).sum())
